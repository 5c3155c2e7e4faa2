import type { Chapter } from "../types";

export const chapter: Chapter = {
  settings: { activation: "sigmoid", gain: 1, depth: 1, width: 1, init: "glorot", connections: ["plain"] },
  sections: [
    {
      title: "A slope",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `A neuron multiplies what it gets by a *weight* w, adds a constant b, its *bias*, and bends the result by a
              curve φ, its *activation*. To learn, a network must know how much its error would change if it changed
              something by a little. That is a slope, and its name here is the *gradient*.

              If the input moves by a little, the product moves by the weight times as much, and the output by the curve's
              slope times that. Slopes of things in a row multiply: this is the *chain rule*. What is asked of the output
              comes back to the input multiplied by the same two numbers, the weight and the slope of the curve.`,
            expert: `A unit computes φ(wx + b). Backpropagation multiplies the gradient that arrives at its output by w φ'(u):
              one factor from the weight, one from the slope at the u that the forward pass came by. Neither is a property
              of the activation alone. What is said of vanishing gradients often names φ' only, and leaves out w, and the
              law of u, which the layers below decide.`,
          },
        },
        { kind: "formula", name: "neuron" },
      ],
    },
    {
      title: "The sigmoid's quarter",
      blocks: [
        {
          kind: "text",
          text: {
            simple: `The *sigmoid* squeezes every number to between 0 and 1. It is steepest in the middle. Far from 0 it is
              nearly flat: the neuron is *saturated*, and next to nothing comes back through it, whatever is asked.`,
            expert: `The logistic sigmoid was the usual choice for decades. Its slope falls off like exp(−|u|): a saturated
              unit passes no gradient back, and its own weights get none by which to leave. Its mean of one half matters, too:
              it is the same for all inputs, and the next layer's weights make pre-activations of it that say nothing of them.`,
          },
        },
        {
          kind: "question",
          question: {
            id: "a",
            kind: "number",
            text: {
              simple: "How steep is the sigmoid where it is steepest? The weight is 1.",
              expert: "What is the largest slope of the sigmoid, with w = 1?",
            },
            ask: { quantity: "slope" },
            low: 0.01,
            high: 10,
            unit: "",
            why: {
              simple:
                "A quarter. So a neuron with a sigmoid and a weight of 1 gives back at most a quarter of what it is asked.",
              expert: "σ' = σ(1 − σ) is largest where σ is one half: exactly 1/4.",
            },
          },
        },
        { kind: "formula", name: "sigmoid", expert: true },
        {
          kind: "question",
          question: {
            id: "b",
            kind: "band",
            text: {
              simple: "tanh has the same form, and goes from −1 to 1. How steep is it at most?",
              expert: "And the largest slope of tanh?",
            },
            ask: { quantity: "slope", settings: { activation: "tanh" } },
            bands: [
              { label: "a quarter too, or less", below: 0.26 },
              { label: "more than a quarter, less than 1", below: 0.99 },
              { label: "four times as steep as the sigmoid", below: 1.01 },
            ],
            unit: "",
            why: {
              simple: "tanh is four times as steep: near 0 it hands on what it gets as it is.",
              expert: "tanh u = 2 σ(2u) − 1, so that its slope at 0 is 4 σ'(0) = 1.",
            },
          },
        },
        {
          kind: "correction",
          said: "The slopes of sigmoid and tanh are at most 0.25.",
          after: "b",
          text: {
            simple: "The sigmoid's are. Those of tanh go up to 1.",
            expert:
              "Only the sigmoid's: for tanh the bound is γ = 1, as Pascanu, Mikolov and Bengio (2013, section 2.1) state it beside the sigmoid's 1/4.",
          },
        },
      ],
      drawing: {
        kind: "neuron",
        title: "What comes out, and how steeply",
        controls: ["activation", "gain", "depth"],
        caption: {
          simple: "Depth is the number of neurons in a row, each with the same weight.",
          expert:
            "As many units φ(w u) in a row as there are layers, w being the factor of the weights, and the derivative by x.",
        },
      },
    },
    {
      title: "The weight counts as much",
      blocks: [
        {
          kind: "question",
          question: {
            id: "c",
            kind: "number",
            text: {
              simple: "Now the weight is 4. How steep is the neuron at most?",
              expert: "The largest slope of σ(4x)?",
            },
            ask: { quantity: "slope", settings: { gain: 4 } },
            low: 0.01,
            high: 100,
            unit: "",
            why: {
              simple:
                "Four times a quarter. A large weight makes up for a flat curve: keep this in mind for the next chapter.",
              expert:
                "w φ'(0) = 1. The price: the interval in which the unit is not saturated is four times as narrow, so that the slope averaged over a wide law of x does not grow.",
            },
          },
        },
        {
          kind: "question",
          question: {
            id: "d",
            kind: "number",
            text: {
              simple: "Two sigmoid neurons in a row, with weights of 1. How steep are they together, at most?",
              expert: "The largest slope of σ(σ(x))?",
            },
            ask: { quantity: "slope", settings: { depth: 2 } },
            low: 0.001,
            high: 1,
            unit: "",
            why: {
              simple:
                "A little less than a quarter of a quarter, 0.0625. Where the first neuron is steepest it hands on one half, and there the second one is no longer at its steepest.",
              expert:
                "Not 1/16 = 0.0625: at x = 0 the second unit sits at u = 1/2, where its slope is 0.235. A product of maxima is a bound, and here no point attains it.",
            },
          },
        },
      ],
    },
  ],
  sources: ["hochreiter1991", "glorot", "pascanu"],
};
