import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: { activation: "sigmoid", init: "glorot", depth: 20, width: 32, connections: ["plain"], view: "gradient" },
  sections: [
    {
      title: "What depth is for",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A layer is many neurons side by side, and a deep network is many layers in a row. Each layer makes new numbers
              of those that the one before it made. In networks that look at pictures, early layers answer to edges, later
              ones to larger and rarer things.`,
            expert: `Composition is what depth adds. A tent map with itself ten times, three ReLUs a layer, has 2¹⁰ linear
              pieces; one hidden layer of m units has at most m + 1 on a line, so that it needs a thousand (after Telgarsky
              2016). That such functions exist says neither that one's own is one of them nor that training finds it.`,
          },
        },
        {
          kind: "correction",
          said: "Layers 1–2 see edges, 3–4 textures, 5–6 parts of objects, and 7 and above whole objects.",
          text: {
            simple: `Edges at the first layer, yes. After that no layer has a fixed task. In a well-known network of five such
              layers the second sees corners and circles and the fifth entire objects; it has no seventh. In a network of a hundred
              layers the seventh still is near the beginning.`,
            expert: `Zeiler and Fergus (2014) found corners and conjunctions of edges at layer 2 of five, textures at 3, parts that
              are specific to classes at 4 and entire objects at 5. In GoogLeNet textures and parts lie elsewhere (Olah,
              Mordvintsev and Schubert 2017). What is seen goes with the share of the depth and with the architecture, not
              with an index.`,
          },
        },
        {
          kind: "correction",
          said: "Deep networks represent any function that a shallow one can with exponentially fewer neurons.",
          text: {
            simple:
              "Some functions, not any. It has been proven that there are functions which a few layers make easily and one layer only with enormously many neurons. How many of them one meets is another question.",
            expert:
              "The quantifier is wrong. Eldan and Shamir (2016) show that there is one function, nearly radial, which two hidden layers approximate and one does only with a width exponential in the dimension; Telgarsky (2016) has a family. He adds that such functions are few.",
          },
        },
      ],
    },
    {
      title: "Products",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `The gradient starts at the output and goes back layer by layer; each layer multiplies it by its weights and by
              the slopes of its curves. A number that is multiplied by the same factor again and again soon is as good as
              nothing if the factor is below 1, and enormous if it is above. Only near 1 does it last.

              A layer learns from the gradient that reaches it. The first layers get what all the others have left. Where
              that is nothing, training stands still; where it is enormous, training flies apart.`,
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
                "Twenty layers of 32 sigmoid neurons each, with Glorot's weights. How much of the gradient at the last layer is left at the first?",
              expert:
                "Twenty layers, sigmoid, σw² = 1 (Glorot): root mean square of the gradient at layer 1 over that at layer 20?",
            },
            ask: { quantity: "kept", connection: "plain" },
            low: 1e-30,
            high: 1000,
            unit: "",
            why: {
              simple:
                "Next to nothing: about a millionth of a millionth, as it passes nineteen layers on its way. A step that moves the last layer by one metre moves the first by the hundredth part of an atom.",
              expert:
                "√χ is 0.236 per layer, over 19 layers. Not a quarter: slopes are squared and averaged where the pre-activations are, and the weights multiply them by 1 in the mean square.",
            },
          },
        },
        { kind: "formula", name: "chi", expert: true },
        {
          kind: "correction",
          said: "Where the early layers learn nothing, a deep network is a shallow one; and Adam, which divides by the size of the gradient, repairs it.",
          text: {
            simple: `It is worse than a shallow one. The signal has to pass the layers that have learned nothing, and they make all
              inputs alike. Trained on digits with Adam's method, twenty layers of sigmoids still guess after 300 steps, with a
              loss of 2.3; two layers come down to 0.5 or 0.6, by the luck of their first weights.`,
            expert: `The forward signal passes the same layers. On the 8 × 8 digits, with AdamW, 300 steps, He's weights and no
              normalisation, twenty layers of sigmoids stay at ln 10 = 2.3 on what they train on; two come to 0.5 to 0.6, by the draw. Adam mends sizes
              above its ε of 10⁻⁸, and no size restores what the signal has lost.`,
          },
        },
      ],
    },
    {
      title: "Losses on the way",
      blocks: [
        {
          kind: "question",
          question: {
            id: "e",
            kind: "number",
            text: {
              simple:
                "Let the network be judged on its way, too: a second output, with a loss of its own, reads what the fourth layer returns. How much of the gradient of *this* loss at that layer is left at the first?",
              expert:
                "A head with a loss of its own reads the fourth layer of the same network: root mean square of that loss' gradient at layer 1 over that at layer 4?",
            },
            ask: { quantity: "kept", connection: "plain", settings: { depth: 4 } },
            low: 1e-12,
            high: 100,
            unit: "",
            why: {
              simple:
                "About a hundredth: for this loss the network has four layers, and the others are not in its way. A hundredth is enough to learn from.",
              expert:
                "√χ = 0.236 over three layers: 0.0132. Later layers are not on this loss' path, so that it is the gradient of a network of depth 4, which is what is computed here.",
            },
          },
        },
        {
          kind: "correction",
          said: "Losses in the middle of a network help it to learn, because they anchor what it represents there, as skips do.",
          text: {
            simple: `That they bring a gradient to the first layers you have computed. How far it helps the *output* is another question:
              we trained twenty layers of sigmoids on pictures of digits. Without such losses they guessed; with them the output
              came to between 43 and 71 of a hundred, and with connections that begin at zero, and no such losses, to 90. Nobody
              has shown that “anchoring” is the reason.`,
            expert: `Our study R16, five seeds: the gradient of layer 1 is 5 to 7 billion times as large, the output of 20 sigmoid layers
              comes to 43 to 71 % on MNIST (ReZero without such losses: 90 to 91 %), and the head after layer 4 is ahead of it in each seed. Where a
              low task goes counts: parts of speech supervise better at the innermost layer than at the outermost (Søgaard and Goldberg
              2016, and R16). The reason is a hypothesis: ReZero comes to 1.08 bits per byte with 128 layers and no such loss, where 1.06 is reported
              with them.`,
          },
          after: "e",
        },
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
              the figure, and its line rises above the dotted one. (Over the nineteen layers from the last to the first 0.25ⁿ is
              3.6×10⁻¹².) And so small a number is not zero: a computer holds far smaller ones. What fails is the step, next to weights that are that much larger.`,
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
              simple: "Vastly more than 0.25 per layer, with the same curve. The weights have made up for most of it.",
              expert:
                "√χ is 0.892 now: eight times the weights, with slopes that are flatter in the mean since units saturate. Draws differ by factors: a product of twenty random matrices of width 32.",
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
                "It grows, by how much is a matter of luck: the draws differ widely. Few neurons are steep then, but through those few it comes back multiplied by large weights. A network of sigmoids can explode.",
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
                "No curves at all now, and weights that make hardly any input longer than it was. How much of the gradient is left after twenty layers?",
              expert: "Twenty linear layers of independent weights, scaled to a spectral norm of about 1?",
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
  sources: [
    "zeiler",
    "olah",
    "telgarsky",
    "eldan",
    "hochreiter1991",
    "glorot",
    "pascanu",
    "schoenholz",
    "sogaard",
    "alrfou",
    "rezero",
  ],
};
