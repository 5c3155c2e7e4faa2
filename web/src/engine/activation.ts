/**
 * Activations: those that `levada.theory` knows by name, with the slopes that PyTorch's backward passes have.
 *
 * At NaN too, and there they differ: ReLU lets all of the gradient through, Hardtanh none. Where PyTorch's vector loop and
 * the scalar one behind it differ (ELU, SELU and Hardtanh at NaN), it is the vector loop's, which takes nearly all of a layer.
 */

import { erf } from "./erf";
import { expOfNegative } from "./exp";
import { type Back, type Forth, map } from "./kernels";
import type { Floats } from "./matrix";

export interface Activation {
  readonly name: string;
  value(u: number): number;
  /** The slope; at a kink, the one that PyTorch takes. */
  slope(u: number): number;
  /** The same from the value, where that says it: it spares an exponential, and is what PyTorch computes. */
  readonly slopeOfValue?: (y: number) => number;
  /** The compiled loop that goes through it, if there is one. */
  readonly forth?: Forth;
  /** The compiled loop that goes back through it, if there is one. */
  readonly back?: Back;
  /** Where the slope is 0 or 1 and PyTorch selects: an infinite gradient that is held back is 0, and not NaN. */
  readonly selects?: boolean;
  /** Where the slope jumps, other than at zero. */
  readonly kinks: readonly number[];
}

const SQRT_HALF = Math.SQRT1_2;
const NORMAL_PEAK = 1 / Math.sqrt(2 * Math.PI);
const SELU_SCALE = 1.0507009873554805;
const SELU_ALPHA = 1.6732632423543772;
const SOFTPLUS_THRESHOLD = 20; // PyTorch's: linear above

/** Without overflow on either side. */
export function sigmoid(u: number): number {
  const e = expOfNegative(-Math.abs(u));
  return (u >= 0 ? 1 : e) / (1 + e);
}

/** Of each number, in its place. */
export function sigmoidAll(data: Floats): void {
  if (map("sigmoid", data, data)) return;
  for (let i = 0; i < data.length; i++) data[i] = sigmoid(data[i]);
}

function softplus(u: number): number {
  return u > SOFTPLUS_THRESHOLD ? u : Math.max(u, 0) + Math.log1p(Math.exp(-Math.abs(u)));
}

function define(
  name: string,
  value: (u: number) => number,
  slope: (u: number) => number,
  kinks: readonly number[] = [],
): Activation {
  return { name, value, slope, kinks };
}

/** Of which the slope is a function of the value. */
function defineByValue(
  name: string,
  value: (u: number) => number,
  slopeOfValue: (y: number) => number,
  loops: Pick<Activation, "forth" | "back">,
): Activation {
  return { name, value, slope: (u) => slopeOfValue(value(u)), slopeOfValue, ...loops, kinks: [] };
}

/** `max(u, 0) + slope min(u, 0)`. */
export function leakyRelu(slope = 0.01): Activation {
  return define(
    "leaky_relu",
    (u) => (u > 0 ? u : slope * u),
    (u) => (u > 0 ? 1 : slope),
  );
}

/** `u Phi(u)`, exact. */
function gelu(): Activation {
  const below = (u: number) => 0.5 * (1 + erf(u * SQRT_HALF));
  return define(
    "gelu",
    (u) => u * below(u),
    (u) => below(u) + u * NORMAL_PEAK * Math.exp(-0.5 * u * u),
  );
}

function silu(): Activation {
  const slope = (u: number) => {
    const s = sigmoid(u);
    return s * (1 + u * (1 - s));
  };
  return define("silu", (u) => u * sigmoid(u), slope);
}

function mish(): Activation {
  const slope = (u: number) => {
    const t = Math.tanh(softplus(u));
    return t + u * (1 - t * t) * sigmoid(u);
  };
  return define("mish", (u) => u * Math.tanh(softplus(u)), slope);
}

const known: readonly Activation[] = [
  define(
    "linear",
    (u) => u,
    () => 1,
  ),
  {
    name: "relu",
    // biome-ignore lint/complexity/useMathMinMax: Math.max makes 0 of -0, which PyTorch keeps.
    value: (u) => (u < 0 ? 0 : u),
    slope: (u) => (u <= 0 ? 0 : 1),
    selects: true,
    forth: "relu",
    back: "reluBack",
    kinks: [],
  },
  leakyRelu(),
  defineByValue("sigmoid", sigmoid, (s) => s * (1 - s), { forth: "sigmoid", back: "sigmoidBack" }),
  defineByValue("tanh", Math.tanh, (t) => 1 - t * t, { back: "tanhBack" }),
  define("erf", erf, (u) => (2 / Math.sqrt(Math.PI)) * Math.exp(-u * u)),
  gelu(),
  silu(),
  mish(),
  define("softplus", softplus, (u) => (u > SOFTPLUS_THRESHOLD ? 1 : sigmoid(u)), [SOFTPLUS_THRESHOLD]),
  define(
    "elu",
    (u) => (u > 0 ? u : Math.expm1(u)),
    (u) => (u > 0 ? 1 : Math.exp(u)),
  ),
  define(
    "selu",
    (u) => SELU_SCALE * (u > 0 ? u : SELU_ALPHA * Math.expm1(u)),
    (u) => SELU_SCALE * (u > 0 ? 1 : SELU_ALPHA * Math.exp(u)),
  ),
  {
    name: "hardtanh",
    value: (u) => Math.min(Math.max(u, -1), 1),
    slope: (u) => (u > -1 && u < 1 ? 1 : 0),
    selects: true,
    kinks: [-1, 1],
  },
];

export const activationNames: readonly string[] = known.map((activation) => activation.name);

export function activation(name: string): Activation {
  const found = known.find((one) => one.name === name);
  if (!found) throw new RangeError(`activation ${name} is not known. Known: ${activationNames.join(", ")}.`);
  return found;
}
