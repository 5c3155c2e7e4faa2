/** Names and explanations of what can be chosen. */

import type { ConnectionName } from "../engine/connections/index";
import type { INITS, NORMS, OPTIMIZERS, Settings, Tab } from "./settings";

export const TAB_NAMES: Record<Tab, string> = {
  depth: "Depth",
  train: "Train",
  time: "Through time",
  mixing: "Mixing",
  lessons: "Lessons",
};

/** As in the legend. */
export const SHORT_NAMES: Record<ConnectionName, string> = {
  plain: "plain",
  residual: "residual",
  post_norm: "post-norm",
  highway: "highway",
  dense: "dense",
  hyper: "HC",
  manifold: "mHC",
  identity: "identity HC",
  attention: "AttnRes",
};

export const LONG_NAMES: Record<ConnectionName, string> = {
  plain: "plain: each layer replaces what came before",
  residual: "residual: each layer adds to what came before",
  post_norm: "post-norm: residual, then normalised",
  highway: "highway: gates choose between layer and carry",
  dense: "dense: each layer reads all layers before it",
  hyper: "hyper-connections (HC): several streams, mixed freely",
  manifold: "manifold-constrained hyper-connections (mHC): streams mixed so that their mean is kept",
  identity: "identity hyper-connections: several streams, not mixed",
  attention: "attention residuals (AttnRes): each layer chooses what it reads from the layers before it",
};

export const INIT_NAMES: Record<(typeof INITS)[number], string> = {
  pytorch_default: "PyTorch's default",
  he: "He",
  glorot: "Glorot (Xavier)",
  orthogonal: "orthogonal",
  gaussian: "Gaussian, by variance",
};

export const NORM_NAMES: Record<(typeof NORMS)[number], string> = {
  none: "none",
  layer: "layer",
  rms: "RMS",
  batch: "batch",
};

export const OPTIMIZER_NAMES: Record<(typeof OPTIMIZERS)[number], string> = {
  sgd: "SGD",
  momentum: "SGD, momentum 0.9",
  adamw: "AdamW",
};

export const VIEW_NAMES: Record<Settings["view"], string> = {
  both: "both",
  signal: "signal",
  gradient: "gradient",
  update: "first update",
};

export const AXIS_NAMES = {
  signal: "signal, root mean square",
  gradient: "gradient, root mean square",
  update: "change of the weights by the first step, over the weights",
};

/** What a figure shows, for those who meet it for the first time, and for those who know the terms. */
export const CAPTIONS = {
  signal: {
    simple:
      "How large the numbers are that each layer passes on, from the input on the left to the output on the right. " +
      "Root mean square: square them, take the mean, then the root, so that plus and minus do not cancel.",
    expert:
      "Root mean square of what each branch reads, and last of what the stack returns. The input is standard normal. " +
      "Prediction: q' = σw² E[φ(√q z)²] + σb².",
  },
  gradient: {
    simple:
      "How much of what the output asks for reaches each layer: without it, a layer cannot learn. Read it from right to left.",
    expert:
      "Root mean square of the gradient by what each branch returns, and first by the stack's input, for a standard normal " +
      "gradient at the output. Prediction: a plain layer multiplies its square by χ = σw² E[φ'(√q z)²], a residual one by " +
      "1 + χ, and by more where it ends in an activation with a mean: a part of the gradient then lies along the stream.",
  },
  update: {
    simple: "How far the first training step would move each layer's weights, compared with the weights themselves.",
    expert:
      "Root mean square of the optimizer's first step on each weight matrix over that of the matrix, for the same gradient. " +
      "In float32 a step below the weights' precision changes nothing, and is drawn as zero.",
  },
} as const;

/** Of AdamW's first step. */
export const DECAY = {
  simple: "AdamW also shrinks all weights a little at each step: where no gradient arrives, this alone is left.",
  expert:
    "AdamW's decoupled weight decay (0.01 times the learning rate) is part of the step: it is what is left where the gradient is below epsilon.",
} as const;

export const NO_THEORY =
  "Theory as it is computed here covers plain and residual stacks without normalisation; for the others nothing is predicted.";

/** What the line of 0.25 per layer is, and why it is no bound. */
export const REFERENCE = {
  simple:
    "Dotted: 0.25 per layer, the steepest slope of the sigmoid. It is often taken for a bound, but weights count too: raise the gain and the gradient stays above it.",
  expert:
    "Dotted: 0.25ⁿ, from max φ' = 1/4. It bounds the product of slopes, not the gradient, which the weights multiply as well: with σw² E[φ'²] > 1/16 it is exceeded.",
} as const;
