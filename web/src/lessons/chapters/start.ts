import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: {
    activation: "relu",
    init: "pytorch_default",
    depth: 50,
    width: 64,
    connections: ["plain"],
  },
  sections: [
    {
      title: "Keep the variance",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `Before training, weights are random numbers. A neuron adds up n products of random numbers; they partly
              cancel, and the sum is about √n times as large as one of them. To keep the size of a signal from layer to
              layer, weights must be about 1/√n large. That is *Glorot's* (or Xavier's) initialisation. *ReLU* replaces
              negative numbers by 0, which costs half of the square; *He's* initialisation makes up for that with weights
              that are √2 times as large.`,
            expert: `In wide layers pre-activations are Gaussian, and only their variance q matters. It follows the map below;
              the same weights bring the gradient back, multiplied by √χ per layer. For ReLU E[φ²] = q/2 and E[φ'²] = 1/2,
              so that σw² = 2 (He) keeps both at once. nn.Linear starts from U(±1/√n), that is σw² = 1/3: the scheme that
              Glorot and Bengio (2010) took as the standard one, and improved upon.`,
          },
        },
        { kind: "formula", name: "variance", expert: true },
        {
          kind: "question",
          question: {
            id: "a",
            kind: "number",
            text: {
              simple:
                "PyTorch's linear layers start from smaller weights than He's. By which factor does each layer of ReLUs multiply the gradient?",
              expert: "nn.Linear's default and ReLU: factor of the gradient's root mean square per layer?",
            },
            ask: { quantity: "rate", connection: "plain" },
            low: 0.05,
            high: 5,
            unit: "per layer",
            why: {
              simple: "About 0.41. After fifty layers that is nothing; with two or three nobody notices.",
              expert: "√(1/3 · 1/2) = √(1/6) = 0.408, whatever the width. What you see is measured at width 64.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "b",
            kind: "choice",
            text: {
              simple:
                "Fifty layers of ReLUs. With which initialisation is most of the gradient left at the first layer?",
              expert: "Fifty layers, ReLU: which initialisation leaves most at layer 1?",
            },
            options: [
              { label: "PyTorch's default", ask: { quantity: "kept", connection: "plain" } },
              { label: "Glorot", ask: { quantity: "kept", connection: "plain", settings: { init: "glorot" } } },
              { label: "He", ask: { quantity: "kept", connection: "plain", settings: { init: "he" } } },
            ],
            wins: "largest",
            unit: "of the last layer's",
            why: {
              simple:
                "He's is made for ReLU, and keeps it but for what chance does. Glorot's is made for curves of slope 1 near 0.",
              expert: "χ is 1 for He, 1/2 for Glorot, 1/6 for the default: over 49 layers χ^(49/2).",
            },
          },
        },
      ],
      drawing: {
        kind: "depth",
        title: "Signal and gradient by layer",
        controls: ["init", "activation", "depth", "gain"],
        caption: {
          simple: "Above, how large the signal is on its way forward; below, the gradient on its way back.",
          expert: "Root mean squares; dashed, the mean-field prediction, from this batch's input. Width 64.",
        },
      },
    },
    {
      title: "A signal that is not yours",
      blocks: [
        {
          kind: "question",
          question: {
            id: "c",
            kind: "band",
            text: {
              simple:
                "Back to PyTorch's default with ReLU. The gradient is gone after fifty layers. And the signal: how large is it at the output?",
              expert: "PyTorch's default with ReLU and fifty layers: the signal at the output over that at the input?",
            },
            ask: { quantity: "carried", connection: "plain" },
            bands: [
              { label: "less than a millionth", below: 1e-6 },
              { label: "between a millionth and a half", below: 0.5 },
              { label: "more than half", below: Number.POSITIVE_INFINITY },
            ],
            unit: "of the input's",
            why: {
              simple:
                "It looks healthy, but it is not your signal any more: it is what the random biases of the last few layers add. If you look at activations alone, you do not see that nothing of the input is left.",
              expert:
                "The default draws biases of variance 1/(3n), so that q goes to a fixed point above zero while its dependence on the input falls as the gradient does. The size of the signal is no diagnosis; without bias it would fall by 0.408 too.",
            },
          },
        },
      ],
    },
    {
      title: "The edge of chaos",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `With tanh, small weights make all inputs look alike after some layers: *order*. Large ones blow up the
              smallest difference: *chaos*. In between there is an edge, at weights of about 1/√n, where differences neither
              die nor grow. There a plain network can be deep.`,
            expert: `χ(q*) is also the slope of the map of correlations at 1: below 1 inputs become alike over a depth ξ =
              −1/ln χ, above 1 they decorrelate. Plain tanh networks were found to train to about 6ξ (Schoenholz et al.
              2017); at σw² = 1, σb² = 0.05 this is 21.8 layers, and at the edge there is no such limit. For σb = 0 the edge
              is σw = 1, where q falls like 1/(2l) and the gradient only like 1/√L.`,
          },
        },
        {
          kind: "question",
          question: {
            id: "d",
            kind: "choice",
            text: {
              simple:
                "Fifty layers of tanh with orthogonal weights (they turn, and stretch nothing), times a factor. With which factor is the gradient at the first layer most like that at the last?",
              expert:
                "Fifty layers, tanh, orthogonal weights times σw: for which σw is the ratio of gradients nearest to 1?",
            },
            options: [0.7, 1, 2].map((gain) => ({
              label: String(gain),
              ask: {
                quantity: "kept",
                connection: "plain",
                settings: { activation: "tanh", init: "orthogonal", gain },
              },
            })),
            wins: "nearest",
            unit: "of the last layer's",
            why: {
              simple: "Below 1 it dies out, above 1 it grows, as fast as powers do.",
              expert:
                "0.7 is in the ordered phase, 2 in the chaotic one. At 1 what is lost is a power of depth and no exponential.",
            },
          },
        },
        {
          kind: "correction",
          said: "Vanishing gradients were never solved, only gone around by skips and gates.",
          text: {
            simple: "The figure has neither: the right start alone brings most of the gradient through fifty layers.",
            expert:
              "Orthogonal weights at criticality attack it directly: with them plain convolutional networks of 10,000 layers were reported to train (Xiao et al. 2018).",
          },
        },
        {
          kind: "correction",
          said: "Before 2015, networks could not be trained beyond about twenty layers.",
          text: {
            simple:
              "Twenty layers is roughly how deep plain networks of tanh go with one common initialisation. With gates, a hundred layers were trained before residual networks came; and with the right start plain networks can be deep, too.",
            expert:
              "21.8 is 6ξ of tanh at σw² = 1, σb² = 0.05, and no law. Highway networks of 100 layers were trained months before the residual network (Srivastava, Greff and Schmidhuber 2015).",
          },
        },
      ],
    },
  ],
  sources: ["glorot", "delving", "poole", "schoenholz", "highway", "xiao"],
};
