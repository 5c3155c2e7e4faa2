import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: { activation: "sigmoid", init: "glorot", depth: 20, width: 32, connections: ["plain"], view: "gradient" },
  sections: [
    {
      title: "Products",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A layer is many neurons side by side, and a deep network is many layers in a row. The gradient starts at
              the output and goes back layer by layer; each layer multiplies it by its weights and by the slopes of its
              curves. A number that is multiplied by the same factor again and again soon is as good as nothing, if the
              factor is below 1, or enormous, if it is above. Only near 1 does it last.

              A layer learns from the gradient that reaches it. The first layers get what all the others have left.`,
            expert: `The gradient at layer l is a product of Jacobians. For random weights of variance σw²/n, independent of
              the slopes, its squared norm is multiplied by χ = σw² E[φ'²] per layer in the limit of wide layers; norms of
              single matrices hardly matter, the mean square does. χ below 1 means that gradients vanish with depth, above 1
              that they explode.`,
          },
        },
        { kind: "formula", name: "chain", expert: true },
        {
          kind: "question",
          question: {
            id: "a",
            kind: "number",
            text: {
              simple:
                "Twenty layers of sigmoid neurons, with Glorot's weights. How much of the gradient at the last layer is left at the first?",
              expert:
                "Twenty layers, sigmoid, σw² = 1 (Glorot): root mean square of the gradient at layer 1 over that at layer 20?",
            },
            ask: { quantity: "kept", connection: "plain" },
            low: 1e-30,
            high: 1000,
            unit: "",
            why: {
              simple:
                "Next to nothing. A step of gradient descent that moves the last layer by a hair moves the first one by less than an atom.",
              expert:
                "√χ is 0.236 per layer, over 19 layers. Not a quarter: slopes are squared and averaged where the pre-activations are, and the weights multiply them by 1 in the mean square.",
            },
          },
        },
        { kind: "formula", name: "chi", expert: true },
      ],
    },
    {
      title: "Break the quarter yourself",
      blocks: [
        {
          kind: "correction",
          said: "The sigmoid's slope is at most 0.25, so after n layers the gradient is below 0.25ⁿ.",
          text: {
            simple: `0.25ⁿ is a bound on the *slopes*. The gradient is multiplied by the weights as well. Make them larger in
              the figure, and its line rises above the dotted one. (For twenty layers 0.25ⁿ is 9.1×10⁻¹³.)`,
            expert: `The product of the slopes obeys it; the gradient obeys the bound below, with the weights' norms, which for
              square Gaussian matrices is 2σw per layer. 0.25²⁰ is 9.1×10⁻¹³; with σw² = 16 theory has 1.0×10⁻⁴ over twenty
              layers.`,
          },
        },
        { kind: "formula", name: "bound", expert: true },
        {
          kind: "question",
          question: {
            id: "b",
            kind: "number",
            text: {
              simple: "The same network with weights eight times as large. How much is left at the first layer?",
              expert: "The same with σw = 8?",
            },
            ask: { quantity: "kept", connection: "plain", settings: { gain: 8 } },
            low: 1e-30,
            high: 1e6,
            unit: "",
            why: {
              simple:
                "Vastly more than 0.25 per layer allows, with the same curve. The weights have made up for most of it.",
              expert:
                "√χ is 0.892 now: eight times the weights, with slopes that are flatter in the mean since units saturate.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "c",
            kind: "band",
            text: {
              simple: "And with weights twenty times as large, when most neurons are saturated?",
              expert: "And with σw = 20, when most units are saturated?",
            },
            ask: { quantity: "kept", connection: "plain", settings: { gain: 20 } },
            bands: [
              { label: "less than a thousandth is left", below: 1e-3 },
              { label: "between a thousandth and all of it", below: 1 },
              { label: "the gradient has grown", below: Number.POSITIVE_INFINITY },
            ],
            unit: "",
            why: {
              simple:
                "It grows. Few neurons are steep then, but through those few it comes back multiplied by large weights. A network of sigmoids can explode.",
              expert:
                "For large σw the variance of u grows like σw², and E[σ'²] falls only like 1/σw: χ grows like σw. Sigmoid networks have a chaotic phase too.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "d",
            kind: "number",
            text: {
              simple:
                "No curves at all now, and weights that stretch no direction to more than about its length. How much of the gradient is left after twenty layers?",
              expert: "Linear layers, Gaussian-like weights scaled to a spectral norm of about 1, twenty layers?",
            },
            ask: { quantity: "kept", connection: "plain", settings: { activation: "linear", gain: 0.5 } },
            low: 1e-12,
            high: 10,
            unit: "",
            why: {
              simple:
                "In each layer one direction keeps its length and the others shrink, and a gradient is a mixture of all. “Weights of size one” is not enough: one must say which size.",
              expert:
                "A square matrix of variance σw²/n has spectral norm 2σw and multiplies a random vector by σw: with norm 1 that is one half per layer. What keeps it is variance 1/n, or orthogonal weights, whose singular values are all one.",
            },
          },
        },
      ],
      drawing: {
        kind: "depth",
        title: "Gradient by layer",
        shows: "gradient",
        controls: ["depth", "gain", "activation"],
        caption: {
          simple: "Read it from right to left, as the gradient goes. Dotted: 0.25 per layer. Dashed: what theory says.",
          expert: "Root mean square; dashed, the mean-field prediction from χ of each layer. Width 32, one draw.",
        },
      },
    },
  ],
  sources: ["hochreiter1991", "glorot", "pascanu", "schoenholz"],
};
