import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: {
    activation: "relu",
    init: "he",
    depth: 50,
    width: 32,
    gateBias: -2,
    connections: ["plain", "highway", "dense"],
    cells: ["rnn", "lstm", "gru"],
    forgetBias: 1,
    timeSteps: 200,
  },
  sections: [
    {
      title: "Gates",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A *gate* is a number between 0 and 1, computed from the input, that decides how much passes. A *highway* layer has
              one for each neuron: open, the neuron takes what the layer computed; closed, it keeps what came in. The bias of
              the gates says how they begin: negative means mostly closed, so that the network begins by handing on.`,
            expert: `A highway layer interpolates: the carry is 1 − T. With T = σ(b) and independent terms a layer multiplies the
              squared gradient by about T² χ + (1 − T)², least in between: at T = ½ the carry alone is worth 2⁻⁵⁰ over fifty
              layers, 8.9×10⁻¹⁶. The mean that ReLU gives its signal adds terms that are not independent, so that measured
              gradients are above this.`,
          },
        },
        { kind: "formula", name: "highway", expert: true },
        {
          kind: "question",
          question: {
            id: "a",
            kind: "choice",
            text: {
              simple:
                "Fifty highway layers of ReLUs. With which bias do they leave the *least* of the gradient for the first layer?",
              expert: "Fifty highway layers, ReLU, He: which gate bias leaves least at layer 1?",
            },
            options: [-4, 0, 4].map((gateBias) => ({
              label: `${gateBias === -4 ? "−4, gates nearly closed" : gateBias === 0 ? "0, gates half open" : "4, gates nearly open"}`,
              ask: { quantity: "kept", connection: "highway", settings: { gateBias } },
            })),
            wins: "smallest",
            unit: "of the last layer's",
            why: {
              simple:
                "Half of each is the worst of both. Closed gates hand on; open ones make nearly a plain network, whose gradient He's weights keep.",
              expert:
                "T² + (1 − T)² is least at T = ½. Halving skip and branch alike does worse than the identity in He et al. (2016), too.",
            },
          },
        },
        {
          kind: "correction",
          said: "Residual networks are a special case of highway networks.",
          text: {
            simple:
              "A highway's gate shares out: what it gives to one it takes from the other. A residual layer takes both in full, which no such gate can.",
            expert:
              "Only of the uncoupled form, H T + x C with T = C = 1. As they are trained, C = 1 − T with T in (0, 1): only T = ½ weighs both alike, and halves them.",
          },
        },
        {
          kind: "correction",
          said: "A network that learns how much to let past is better than one that always lets all past.",
          text: {
            simple:
              "Not of itself. In a residual network of 110 layers the makers tried gates in place of the plain addition: all did worse, and some did not learn at all.",
            expert:
              "He et al. (2016, Table 1), ResNet-110 on CIFAR-10: 6.61 % error with the identity, 8.70 % with the best exclusive gate, of bias −6, and failure with biases from 0 to −5.",
          },
        },
        {
          kind: "text",
          text: {
            simple: `*Dense* connections go further: each layer reads the outputs of *all* layers before it, side by side, and adds
              none up. The gradient then has a direct way to each layer.`,
            expert: `DenseNet concatenates: within a block of L layers there are L(L + 1)/2 connections, each layer to all later ones. It
              is not “each layer to the output”, which a pre-activation residual network does: its output is x₀ plus all branches.`,
          },
        },
        {
          kind: "question",
          question: {
            id: "b",
            kind: "band",
            text: {
              simple:
                "Fifty dense layers, eight new numbers each, with layer normalisation before the weights. The gradient at the first layer is …",
              expert:
                "Fifty dense layers, growth 8, W φ(LN(·)): gradient by what layer 1 returns over that by what layer 50 returns?",
            },
            ask: {
              quantity: "kept",
              connection: "dense",
              settings: { norm: "layer", preActivation: true },
            },
            bands: [
              { label: "less than a tenth of that at the last", below: 0.1 },
              { label: "within a factor of 10 of it", below: 10 },
              { label: "more than 10 times as large", below: Number.POSITIVE_INFINITY },
            ],
            unit: "of the last layer's",
            why: {
              simple:
                "Three to four times that at the last: the first layer is read by the output and by 49 layers besides.",
              expert:
                "What layer 1 returns is read by the stack's end and by 49 branches, each with weights that are smaller the more it reads.",
            },
          },
        },
      ],
      drawing: {
        kind: "depth",
        title: "Gradient by layer",
        shows: "gradient",
        controls: ["connections", "gateBias", "depth", "norm", "preActivation"],
        caption: {
          simple: "Before training, with He's weights.",
          expert: "By what each layer's branch returns, at initialisation; growth of the dense connections 8.",
        },
      },
    },
    {
      title: "Depth in time",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A *recurrent* network reads a sequence step by step and keeps a state. It is as deep as the sequence is long:
              the gradient goes back through every step. How far back it can learn is its memory. An *LSTM* keeps a cell that
              each step multiplies by a *forget gate* and adds to; the gate's bias says how much it keeps.`,
            expert: `Here the Jacobians are alike in all steps, since the weights are. Below: H(k) of the whole state, and where it
              falls to 1/1000 for good. Forget gates of bias b carry σ(b) per step: ½ lasts for 10.0 steps, σ(1) = 0.731 for
              22.1, σ(3) = 0.953 for 142. To carry for T steps it takes b = ln(T − 1): 4.6 for T = 100 (Tallec and Ollivier
              2018).`,
          },
        },
        { kind: "formula", name: "lstm", expert: true },
        { kind: "formula", name: "horizon", expert: true },
        {
          kind: "question",
          question: {
            id: "c",
            kind: "number",
            text: {
              simple:
                "An LSTM whose forget gates begin half open (bias 0). After how many steps back is a thousandth of the gradient left?",
              expert: "LSTM, forget bias 0, PyTorch's weights: steps until H(k) is 1/1000?",
            },
            ask: { quantity: "horizon", cell: "lstm", settings: { forgetBias: 0 } },
            low: 1,
            high: 1000,
            unit: "steps",
            why: {
              simple:
                "About a dozen. What a gate of one half keeps alone is ½ · ½ · ½ …, a thousandth after ten; the rest comes through the weights.",
              expert:
                "The gates alone have 10.0. Recurrent weights add a way around of gain g/4, g being theirs; the law of both is dashed in the figure.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "d",
            kind: "number",
            text: {
              simple: "With a forget bias of 1?",
              expert: "With a forget bias of 1?",
            },
            ask: { quantity: "horizon", cell: "lstm" },
            low: 1,
            high: 1000,
            unit: "steps",
            why: {
              simple: "Nearly three times as far, by one number. Biases of forget gates are worth setting by hand.",
              expert:
                "22.1 by the gates alone. PyTorch draws biases near 0, so that what is set to nothing has the memory of the question before.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "e",
            kind: "choice",
            text: {
              simple: "Which remembers longest, with gates of bias 1?",
              expert: "Which has the longest horizon, with gates of bias 1?",
            },
            options: [
              { label: "a plain recurrent network (tanh)", ask: { quantity: "horizon", cell: "rnn" } },
              { label: "LSTM", ask: { quantity: "horizon", cell: "lstm" } },
              { label: "GRU", ask: { quantity: "horizon", cell: "gru" } },
            ],
            wins: "largest",
            unit: "steps",
            why: {
              simple:
                "Both gated cells beat the plain one by far. Change the bias and the weights in the figure: none of it is a law.",
              expert:
                "Near a state of zero a GRU mixes with a gain of (1 − σ(b)) g/2, which closes as its update gate opens; an LSTM's g/4 does not.",
            },
          },
        },
        {
          kind: "correction",
          said: "In a recurrent network the weights are the same in each step, so skip connections make no sense.",
          text: {
            simple: "The LSTM's cell *is* one: what was there is handed on, and the new is added.",
            expert:
              "c is carried with a factor f and added to: a skip in time. And the gradient does not fall by σ(b) per step, as the gates alone would have it: the recurrent weights are a second way.",
          },
        },
      ],
      drawing: {
        kind: "time",
        title: "Gradient by steps back",
        controls: ["cells", "forgetBias", "timeSteps"],
        caption: {
          simple: "How much of the gradient of the last state is left, so many steps back. Dotted: a thousandth.",
          expert:
            "H(k) over 8 sequences of normal inputs, 32 units; dashed, the law of carry and gain near a state of zero.",
        },
      },
    },
    {
      title: "Depth instead of time",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A sequence can also be read without a state: by *convolutions*. Each output of a layer looks at the present step and a few
              before it. One layer sees little; layers upon layers see further. Then it is not the gradient that decides how far
              back the network can learn, but how many layers it has: what is out of reach has a gradient of exactly zero.`,
            expert: `Causal convolutions of k taps at distances d reach 1 + Σ (k − 1) d steps: depth buys range, and how much of it goes with the
              distances. It is a bound on the support; how strongly the far end of it counts is another matter. Below, a
              gradient is sent back through the layers, and where it arrives is counted.`,
          },
        },
        {
          kind: "question",
          question: {
            id: "f",
            kind: "number",
            text: {
              simple:
                "Eight layers, and each looks at the present step and the two before it. How many steps does the last output see?",
              expert: "Eight causal convolutions of three taps, without dilation: the reach of the last output?",
            },
            ask: { quantity: "reach", taps: 3, distances: Array(8).fill(1) },
            low: 1,
            high: 1000,
            unit: "steps",
            why: {
              simple: "Seventeen: two more with each layer, and the present one. For a hundred it takes fifty layers.",
              expert: "1 + 8 · 2. To see D steps back takes D/2 layers of three taps.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "g",
            kind: "choice",
            text: { simple: "Which sees furthest?", expert: "Which has the longest reach?" },
            options: [
              { label: "fifty such layers", ask: { quantity: "reach", taps: 3, distances: Array(50).fill(1) } },
              {
                label: "eight layers that look at seventeen steps each",
                ask: { quantity: "reach", taps: 17, distances: Array(8).fill(1) },
              },
              {
                label: "eight layers that look at three, each at twice the distance of the layer before",
                ask: { quantity: "reach", taps: 3, distances: [1, 2, 4, 8, 16, 32, 64, 128] },
              },
            ],
            wins: "largest",
            unit: "steps",
            why: {
              simple: "Distances that double: what a layer sees is no longer added to the rest, but multiplies it.",
              expert: "1 + 2 (2⁸ − 1). Depth for a range of D falls from D/2 to log₂(D/2 + 1) layers.",
            },
          },
        },
        {
          kind: "correction",
          said: "Sequences are read by convolutional networks, as everyone does nowadays.",
          text: {
            simple:
              "That was said in 2018. Most large language models since then read by *attention*, which sees every step in a single layer; its price is that the work grows with the square of the length.",
            expert:
              "Dated: true of some of 2018 (Bai, Kolter and Koltun). A layer of attention (Vaswani et al. 2017) reaches all steps at once, at a cost quadratic in their number; depth there is not what range costs.",
          },
        },
      ],
    },
  ],
  sources: ["highway", "identity", "densenet", "lstm", "pascanu", "chrono", "bai", "vaswani"],
};
