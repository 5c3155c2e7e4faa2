import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: {
    trainDepth: 32,
    trainNorm: "layer",
    depth: 32,
    width: 32,
    activation: "relu",
    init: "he",
    norm: "layer",
    connections: ["plain", "residual"],
  },
  sections: [
    {
      title: "Deeper is worse",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A deep network could do all that a shallow one does: let its further layers do nothing. Yet deep plain
              networks are worse than shallow ones, and not only on new examples: *on those they train on*. This is
              *degradation*. It is no lack of examples but a failure to train.

              A *residual* layer adds what it computes to what came in. If it computes nothing, it hands on its input
              unharmed: doing nothing has become easy.`,
            expert: `He et al. (2015) report that the *training* error of a plain network of 34 layers, with batch normalisation, stays above
              that of 18 throughout (their figure 4); on ImageNet’s validation images their top-1 errors are 28.54 % and 27.94 %. The solution exists by construction, so that
              it is a matter of optimisation. Here: fully connected layers with layer normalisation and He's weights, on 8 × 8
              digits, by AdamW, 300 steps.`,
          },
        },
        {
          kind: "question",
          question: {
            id: "a",
            kind: "choice",
            text: {
              simple:
                "Two networks of 32 layers learn to read digits, here and now. Whose loss, on the digits that it trains on, is smaller after 300 steps?",
              expert: "32 layers, 300 steps of 32 digits: whose training loss is smaller?",
            },
            options: [
              { label: "plain", ask: { quantity: "loss", connection: "plain" } },
              { label: "residual", ask: { quantity: "loss", connection: "residual" } },
            ],
            wins: "smallest",
            unit: "as training loss (cross-entropy)",
            why: {
              simple:
                "The plain one guesses still. (Guessing among ten digits has a loss of 2.30.) The numbers are of the digits that it trains on, not of new ones. Try it with fewer layers in the figure.",
              expert:
                "ln 10 = 2.30 is the loss of guessing. Same digits, same order, same first weights: only the addition differs.",
            },
          },
        },
        {
          kind: "correction",
          said: "In 2015 deep learning was in a crisis: networks had hit a wall.",
          text: {
            simple: `It is a good story. In the year before, networks of 19 and 22 layers had been the best ones yet; some months before
              the residual network, gated ones of a hundred layers were trained. There was a limit: more layers than about
              twenty brought a plain network no gain, which the plain one above shows. That is an open question, and no crisis.`,
            expert: `Dramatised. Highway networks of 100 layers were trained in May 2015 (Srivastava, Greff and Schmidhuber), seven months before the
              residual network, and the plain network of 34 layers with batch normalisation trains, to the 28.54 % above. What had stopped
              was the gain from further layers.`,
          },
          after: "a",
        },
        {
          kind: "question",
          question: {
            id: "b",
            kind: "band",
            text: {
              simple:
                "So the gradient must have vanished in the plain network? Before training, the gradient at its first layer is …",
              expert: "The gradient of this plain network at initialisation, layer 1 over layer 32?",
            },
            ask: { quantity: "kept", connection: "plain" },
            bands: [
              { label: "less than a thousandth of that at the last", below: 1e-3 },
              { label: "within a factor of 1,000 of it", below: 1e3 },
              { label: "more than 1,000 times as large", below: Number.POSITIVE_INFINITY },
            ],
            unit: "of the last layer's",
            why: {
              simple:
                "It has arrived about as large as it began. Other things are wrong: after many layers all digits look nearly alike, and the gradients of different digits have next to nothing in common.",
              expert:
                "Sizes are kept by the normalisation. Signals have become collinear, and gradients of different inputs decorrelated (Balduzzi et al. 2017 call them shattered); neither shows in a norm.",
            },
          },
        },
        {
          kind: "correction",
          said: "Deep networks were worse because of vanishing gradients, and residual connections fixed that.",
          after: "b",
          text: {
            simple:
              "The authors of residual networks say themselves that theirs did not vanish. Networks can fail to train with gradients of the right size.",
            expert:
              "“We argue that this optimization difficulty is unlikely to be caused by vanishing gradients”, write He et al. (2015, section 4.1). Their plain networks had batch normalisation, whose gradients grow at initialisation.",
          },
        },
      ],
      drawing: {
        kind: "training",
        title: "Training, and each layer taken away",
        controls: ["trainDepth"],
        caption: {
          simple:
            "Above: the loss while both networks learn. Below: what they know of new digits when one layer is taken away.",
          expert:
            "Means over the batches between two reports; accuracy on 360 held-out digits. Digits: E. Alpaydin, C. Kaynak, UCI 1998, CC BY 4.0.",
        },
      },
    },
    {
      title: "Many short paths",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `Through each layer or past it: with L layers there are 2ᴸ ways from input to output. Most go through about
              half of the layers. But the gradient does not come by all ways alike: long ones leave little of it.

              And if there are so many ways, one layer more or less should not matter.`,
            expert: `Veit, Wilber and Belongie (2016) count paths by length and weigh them by the gradient that comes along each: most
              of it takes short ones. Of 54 blocks, lengths of 5 to 17 are 0.45 % of all paths. “Ensemble” is an analogy:
              branches are nonlinear, and paths share weights.`,
          },
        },
        { kind: "formula", name: "paths", expert: true },
        {
          kind: "question",
          question: {
            id: "d",
            kind: "band",
            text: {
              simple:
                "Take one layer out of the trained residual network of 32. How much accuracy on new digits does it lose (the median over all layers)?",
              expert: "Median loss of held-out accuracy over the 32 single lesions of the residual network?",
            },
            ask: { quantity: "lesion", connection: "residual" },
            bands: [
              { label: "less than 2 points in 100", below: 2 },
              { label: "2 to 20 points", below: 20 },
              { label: "more than 20 points", below: Number.POSITIVE_INFINITY },
            ],
            unit: "points",
            why: {
              simple:
                "It hardly notices. (Below 0 it even gains.) Look at the figure for the exceptions, and train plain networks of 8 layers to see what they lose.",
              expert: "It takes depth for that: in a short residual network each block is a large part of the whole.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "e",
            kind: "number",
            text: {
              simple: "Through how many of the 32 layers does the gradient come, in the mean?",
              expert: "Effective depth: the mean length of the paths, weighed by the squared gradient?",
            },
            ask: { quantity: "length", connection: "residual" },
            low: 1,
            high: 32,
            unit: "layers",
            why: {
              simple:
                "Most ways go through 16 of them; the gradient takes shorter ones. To the gradient, the network is less deep than it looks.",
              expert:
                "The paths' own mean is L/2 = 16. Paths are drawn by the layers' gains and weighed by the inverse of their probability, on 32 digits.",
            },
          },
        },
      ],
    },
    {
      title: "Not for nothing",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `Going back, the gradient goes past each layer by the addition, and through it as well. So it does not vanish as in
              a plain network. But two parts that add up make it *larger* with each layer, unless something holds the
              layers small. A way to do that is to let them start at zero; but not with all of their weights, of which each
              would then wait for the other, and none would ever learn.`,
            expert: `The product of I + J is not about 1. With independent branches squared norms add: χ = 1 + σw² E[φ'²], which for He
              and ReLU is 2 per block. Normalisation in the branch, a factor of 1/√L, or branches that start at zero tame it.
              Of a block with two weight matrices, without biases, not both may start at zero: they would get a gradient of exactly
              zero, for ever.`,
          },
        },
        { kind: "formula", name: "residual", expert: true },
        {
          kind: "question",
          question: {
            id: "c",
            kind: "number",
            text: {
              simple:
                "32 residual layers of ReLUs *without* normalisation. How large is the gradient at the first layer, compared with that at the last?",
              expert: "h + W φ(h), He, 32 blocks, no normalisation: gradient at layer 1 over that at layer 32?",
            },
            ask: {
              quantity: "kept",
              connection: "residual",
              settings: { norm: "none", preActivation: true, width: 64 },
            },
            low: 0.001,
            high: 1e9,
            unit: "times",
            why: {
              simple: "It explodes: by about √2 per layer. Residual connections alone do not fix everything.",
              expert:
                "2^(31/2) = 4.6×10⁴ by theory, as 31 blocks lie between, for wide layers; draws of width 64 are off by up to a factor of two. With the activation last, h + φ(W h), it is more: ReLU's outputs have a mean that adds up along the stream, and the part of the gradient that lies along it grows by more than √2. Untick the last control to see it.",
            },
          },
        },
        {
          kind: "correction",
          said: "The residual network won ImageNet 2015 with 152 layers, eight times deeper than the winners before it.",
          text: {
            simple:
              "Eight times as deep as a well-known network of 19 layers. The winner of the year before had 22, so that it is about seven times. And what won was six networks together, only two of which had 152 layers.",
            expert:
              "152/19 is VGG, which did not win the classification task; GoogLeNet did, with 22 layers: 6.9 times. The entry was an ensemble of six models, “only with two 152-layer ones” (He et al. 2015, section 4).",
          },
        },
        {
          kind: "correction",
          said: "So networks of 152, of 1,000, even of 10,000 layers are trained, and models today have hundreds or thousands.",
          text: {
            simple: `152 and 1,202 layers are the authors' own; but the one of 1,202 was *worse* on new pictures than that of 110. Networks of
              10,000 layers were reported with other means than these, and mostly as proof that it can be done. Large language models have some tens of
              blocks.`,
            expert: `He et al. (2015) trained 1,202 layers to a test error of 7.93 % on CIFAR-10, against 6.43 % with 110; others report
              otherwise. Of 10,000 layers, Xiao et al. (2018) have plain convolutions with delta-orthogonal weights, Bachlechner et
              al. (2021) fully connected ReZero; we found no public log of either. The model of 27 billion parameters in the next
              chapter but one has 30 blocks.`,
          },
        },
      ],
      drawing: {
        kind: "depth",
        title: "Gradient by layer",
        shows: "gradient",
        controls: ["connections", "depth", "norm", "preActivation"],
        caption: {
          simple: "Before training.",
          expert: "At initialisation, He, width 32. Theory is drawn where no normalisation is.",
        },
      },
    },
  ],
  sources: ["highway", "resnet", "szegedy", "identity", "veit", "balduzzi", "xiao", "rezero"],
};
