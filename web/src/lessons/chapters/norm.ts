import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: {
    activation: "relu",
    init: "he",
    depth: 50,
    width: 64,
    rows: 64,
    norm: "batch",
    connections: ["plain", "residual"],
  },
  sections: [
    {
      title: "What it mends",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A normalisation measures how large the numbers of a layer are, and divides by that. *Layer
              normalisation* does it for each example on its own; *batch normalisation* for each neuron, over all examples of
              a batch. Both take a mean away as well: of the example's numbers, or of the neuron's. However large or small the
              weights begin, what comes out has size 1. The scale of the weights no longer matters.`,
            expert: `norm(cWx) = norm(Wx): the scale of the weights drops out of the forward pass, and the backward pass divides
              by the standard deviation that the forward pass met. Layer and RMS normalisation nearly agree here, since the
              mean over features of Wx is small for random W. So a plain ReLU stack behind either one has χ near 1, whatever
              σw is; epsilon and the biases aside.`,
          },
        },
        {
          kind: "question",
          question: {
            id: "a",
            kind: "number",
            text: {
              simple:
                "Fifty layers of ReLUs with PyTorch's default, which lost nearly all of the gradient. Now each layer has a layer normalisation. How much is left at the first layer?",
              expert:
                "Fifty plain ReLU layers with PyTorch's default, now φ(LN(Wx + b)): gradient at layer 1 over that at layer 50?",
            },
            ask: { quantity: "kept", connection: "plain", settings: { init: "pytorch_default", norm: "layer" } },
            low: 1e-20,
            high: 1000,
            unit: "",
            why: {
              simple: "A good part of it. Normalisation mends the size, forward and backward.",
              expert:
                "√χ is near 1. What is missing from 1 comes from biases, which differ from Wx in that they do not depend on x, and from the finite width.",
            },
          },
        },
      ],
    },
    {
      title: "What it does not",
      blocks: [
        {
          kind: "question",
          question: {
            id: "b",
            kind: "band",
            text: {
              simple:
                "The same fifty plain layers with batch normalisation and He's weights. What becomes of the gradient on its way to the first layer?",
              expert: "φ(BN(Wx)), fifty plain layers, 64 rows: gradient at layer 1 over that at layer 50?",
            },
            ask: { quantity: "kept", connection: "plain" },
            bands: [
              { label: "it falls below a thousandth", below: 1e-3 },
              { label: "it stays within a factor of 1,000", below: 1e3 },
              { label: "it grows by more than 1,000", below: Number.POSITIVE_INFINITY },
            ],
            unit: "of the last layer's",
            why: {
              simple:
                "It explodes. Batch normalisation in a plain network makes gradients grow towards the input, layer by layer.",
              expert:
                "Rectified signals have a mean, which BN subtracts: it divides by a standard deviation that is smaller than the root mean square, and so is the gradient divided.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "c",
            kind: "number",
            text: {
              simple: "By which factor per layer?",
              expert: "The factor per layer?",
            },
            ask: { quantity: "rate", connection: "plain" },
            low: 0.3,
            high: 3,
            unit: "per layer",
            why: {
              simple:
                "A fifth more with each layer. It sounds like little; over a hundred layers it makes a number of nine digits.",
              expert:
                "Theory has √(π/(π − 1)) = 1.2112 for wide layers and large batches (after Yang et al. 2019): 2.1×10⁸ over a hundred layers.",
            },
          },
        },
        { kind: "formula", name: "batch", expert: true },
        {
          kind: "correction",
          said: "Batch normalisation cures vanishing and exploding gradients.",
          after: "b",
          text: {
            simple:
              "It keeps the signal's size. In a plain network its gradients explode at the start of training; together with residual connections they do not.",
            expert: `At initialisation a plain BN stack explodes. He et al. (2015) argue that their plain networks' signals do not
              vanish, which is right, and that gradients have “healthy norms”, which is not so at initialisation. In a pre-activation
              residual stack block l is divided by a stream whose variance has grown with l, and the product is a power of
              depth (De and Smith 2020).`,
          },
        },
      ],
      drawing: {
        kind: "depth",
        title: "Gradient by layer",
        shows: "gradient",
        controls: ["norm", "connections", "depth", "init", "preActivation"],
        caption: {
          simple: "Change the normalisation, and see which lines rise towards the left.",
          expert:
            "At initialisation, width 64 and 64 rows; batch statistics are those of the batch. No theory is drawn with a normalisation.",
        },
      },
    },
    {
      title: "Before or after the addition",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `Transformers add what a layer does to what came in. The normalisation can stand *inside*, before the layer
              (pre-norm), and leave the way past it alone; or *behind* the addition (post-norm), on everybody's way. The first
              transformers had it behind; today most have it inside.`,
            expert: `Pre-norm: h + F(norm(h)); the identity path is untouched, and the stream's variance grows like depth. Post-norm:
              norm(h + F(h)) divides each time by about √2 while F is as large as h, so that the identity path alone is worth
              2^(−L/2), 3.0×10⁻⁸ for fifty layers, though the whole gradient is kept: it comes through the branches, which
              is what a plain network does.`,
          },
        },
        {
          kind: "question",
          question: {
            id: "d",
            kind: "choice",
            text: {
              simple:
                "Fifty layers, before training. Where is the gradient at the first layer larger, compared with that at the last?",
              expert: "h + W φ(LN(h)) or LN(h + W φ(h)), fifty layers: where is the ratio of first to last larger?",
            },
            options: [
              {
                label: "pre-norm",
                ask: { quantity: "kept", connection: "residual", settings: { norm: "layer", preActivation: true } },
              },
              {
                label: "post-norm",
                ask: { quantity: "kept", connection: "post_norm", settings: { norm: "none", preActivation: true } },
              },
            ],
            wins: "largest",
            unit: "of the last layer's",
            why: {
              simple:
                "Neither vanishes here. In pre-norm early layers get a little more than late ones, since the stream they read is still small and their part of it large.",
              expert:
                "Pre-norm grows as a power of depth towards the input. Post-norm is balanced with these branches; attention and two-layer branches have other gains, and with them the balance is another one.",
            },
          },
        },
      ],
    },
  ],
  sources: ["resnet", "identity", "yang", "smith"],
};
