/**
 * Gradients in residual streams whose activations have a mean, as `levada.theory.coherent_residual_gradient` has them.
 *
 * Where the gradient is independent of the state, each block `h + phi(W h + b)` multiplies its square by
 * `1 + sigma_w^2 E[phi'^2]`. Of a random gradient in n dimensions a share 1/n lies along the state, though, and by the
 * forward pass the weights carry that part back onto the state: it grows faster, and after some layers it is the most.
 */

import type { Activation } from "./activation";
import { normalRule, type RandomNetwork } from "./theory";

/** Means of products of a normal `z`, `f = phi(deviation z) / deviation` and `d = phi'(deviation z)`. */
interface Products {
  readonly f: number;
  readonly ff: number;
  readonly dd: number;
  readonly zd: number;
  readonly zdf: number;
  readonly ddf: number;
  readonly ddff: number;
}

const SMALLEST = 1e-100;
const FINEST = 1e-15;

function products(phi: Activation, deviation: number): Products {
  const kinks = phi.kinks.filter((kink) => Math.abs(kink) < 12 * deviation).map((kink) => kink / deviation);
  const { z, weights } = normalRule([0, ...kinks], Math.min(1, Math.max(FINEST, 1 / deviation)));
  let [f, ff, dd, zd, zdf, ddf, ddff] = [0, 0, 0, 0, 0, 0, 0];
  for (let at = 0; at < z.length; at++) {
    const x = z[at];
    const u = deviation * x;
    const value = phi.value(u) / deviation;
    const slope = phi.slope(u);
    const weighed = weights[at] * slope;
    f += weights[at] * value;
    ff += weights[at] * value * value;
    dd += weighed * slope;
    zd += weighed * x;
    zdf += weighed * x * value;
    ddf += weighed * slope * value;
    ddff += weighed * slope * value * value;
  }
  return { f, ff, dd, zd, zdf, ddf, ddff };
}

/** A block, in units of the root mean square of the state that it reads. */
interface Block {
  readonly size: number;
  /** The state's mean over neurons. */
  readonly mean: number;
  /** The deviation of the pre-activations. */
  readonly inside: number;
  readonly e: Products;
}

/** At each boundary, as a `Prediction`; `chi` is the factor where gradient and state are independent. */
export interface Coherent {
  readonly signal: Float64Array;
  readonly logGradient: Float64Array;
  readonly chi: Float64Array;
}

/**
 * Signal and gradient of blocks `h + phi(W h + b)`; null where the state leaves the range of numbers.
 *
 * @param alignment the share of the gradient's energy at the output that lies along the state there.
 */
export function coherentResidual(network: RandomNetwork, alignment: number): Coherent | null {
  const { activation, weightVariance, biasVariance, depth, q0 } = network;
  const blocks: Block[] = [];
  const signal = new Float64Array(depth + 1);
  let [size, mean] = [Math.max(Math.sqrt(q0), SMALLEST), 0];
  for (let layer = 0; layer < depth; layer++) {
    const deviation = Math.max(Math.hypot(Math.sqrt(weightVariance) * size, Math.sqrt(biasVariance)), SMALLEST);
    const inside = deviation / size;
    const e = products(activation, deviation);
    blocks.push({ size, mean, inside, e });
    signal[layer] = size;
    const grown = Math.sqrt(1 + 2 * mean * inside * e.f + inside ** 2 * e.ff);
    mean = (mean + inside * e.f) / grown;
    size *= grown;
  }
  if (!Number.isFinite(size)) return null;
  signal[depth] = size;
  const chi = Float64Array.from(blocks, ({ e }) => 1 + weightVariance * e.dd);
  const logs = new Float64Array(depth + 1);
  // Of the gradient above a block, over its root mean square: what lies along the state, and its mean over neurons.
  let along = Math.sqrt(alignment);
  let centre = along * mean;
  for (let layer = depth - 1; layer >= 0; layer--) {
    const { size: own, mean: m, inside, e } = blocks[layer];
    along *= own / size;
    size = own;
    const out = along * inside; // of the block's output
    const rest = centre - out * e.f; // independent of the block
    const square = 1 - 2 * out * e.f * rest - out ** 2 * e.ff;
    const back = weightVariance * (along * e.zdf + (rest * e.zd) / inside);
    const through = square * e.dd + 2 * out * rest * e.ddf + out ** 2 * e.ddff;
    const grown = 1 + 2 * back * (along + m * (centre - m * along)) + back ** 2 + weightVariance * through;
    centre = (centre + back * m) / Math.sqrt(grown);
    along = (along + back) / Math.sqrt(grown);
    logs[layer] = logs[layer + 1] + Math.log(grown) / 2;
  }
  return { signal, logGradient: logs, chi };
}
