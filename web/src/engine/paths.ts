/**
 * Over how many branches the gradient of a residual stack really travels: `levada.probe.sampled_path_lengths`.
 *
 * A stack of L residual layers has 2^L paths, and the gradient at its input is a sum over them: at each layer a path goes
 * through the skip, or through the branch's Jacobian. Squared norms of independent paths add, so that the share of length
 * k is proportional to the sum of the squared norms that arrive along its paths, binomial(L, k) of them:
 *
 *     share(k)  ~  sum_(|S| = k) |g_S|^2  =  binomial(L, k) E |g_S|^2.
 *
 * Up to `EXACT` layers every path is followed; 2^L - 1 passes back through a branch are enough, since paths share their
 * beginning. Beyond, paths are sampled as by Veit, Wilber and Belongie 2016 (arXiv 1605.06431), not evenly but by the
 * layers' gains, each weighed by the inverse of its probability: the expectation is the same.
 */

import { type Floats, type Matrix, rms } from "./matrix";
import { type Module, zeroGradients } from "./module";
import { Random } from "./random";

export const EXACT = 10;
const LENGTHS = 17; // tried, where paths are sampled; between them is interpolated
const DRAWS = 8;

export interface PathLengths {
  /** The part of the squared gradient with each length, 0 to L. */
  readonly shares: Float64Array;
  /** The same from the gains alone, as if branches were independent: a product of two-point distributions. */
  readonly estimated: Float64Array;
  /** Effective depth: the mean length. */
  readonly mean: number;
  /** Of each branch: the gradient that comes through it over that through the skip. */
  readonly gains: Float64Array;
  /** How many paths were followed; all of them where `exact`. */
  readonly followed: number;
  readonly exact: boolean;
}

/** A gradient, and the logarithm of what it was divided by, so that no path underflows. */
interface Travelling {
  readonly by: Matrix;
  readonly log: number;
}

/**
 * @param branches of a residual stack, after a forward pass; gradients of their parameters are zero afterwards.
 * @param cotangent the gradient at the stack's output.
 */
export function pathLengths(
  branches: readonly Module[],
  cotangent: Matrix,
  { exact = EXACT, draws = DRAWS, seed = 0 } = {},
): PathLengths {
  const gains = measuredGains(branches, cotangent);
  const depth = branches.length;
  const whole = depth <= exact;
  const logs = whole ? everyPath(branches, cotangent) : sampledPaths(branches, cotangent, gains, draws, seed);
  for (const branch of branches) zeroGradients(branch.parameters);
  const shares = normalised(logs);
  return {
    shares,
    estimated: poissonBinomial(gains),
    mean: shares.reduce((total, share, length) => total + length * share, 0),
    gains,
    followed: whole ? 2 ** depth : draws * Math.min(LENGTHS, depth + 1),
    exact: whole,
  };
}

/** With g at a layer's output and g + J'g at its input, the branch has the gain |J'g| / |g|. */
function measuredGains(branches: readonly Module[], cotangent: Matrix): Float64Array {
  const gains = new Float64Array(branches.length);
  let gradient: Travelling = scaled({ by: cotangent, log: 0 });
  for (let layer = branches.length - 1; layer >= 0; layer--) {
    const through = branches[layer].backward(gradient.by);
    gains[layer] = rms(through.data) / rms(gradient.by.data);
    const sum = through.data.map((value, i) => value + gradient.by.data[i]);
    gradient = scaled({ by: { ...through, data: sum as Floats }, log: 0 });
  }
  return gains;
}

/** Logarithms of the sums of squares over all paths of each length. */
function everyPath(branches: readonly Module[], cotangent: Matrix): Float64Array {
  const logs = new Float64Array(branches.length + 1).fill(Number.NEGATIVE_INFINITY);
  const follow = (layers: number, gradient: Travelling, length: number): void => {
    if (layers === 0) {
      logs[length] = logSum(logs[length], 2 * (gradient.log + Math.log(rms(gradient.by.data))));
      return;
    }
    follow(layers - 1, gradient, length);
    follow(layers - 1, back(branches[layers - 1], gradient), length + 1);
  };
  follow(branches.length, { by: cotangent, log: 0 }, 0);
  return logs;
}

function sampledPaths(
  branches: readonly Module[],
  cotangent: Matrix,
  gains: Float64Array,
  draws: number,
  seed: number,
): Float64Array {
  const depth = branches.length;
  const odds = logOdds(gains);
  const sums = symmetricSums(odds);
  const last = Math.min(depth, LENGTHS - 1);
  const tried = Array.from({ length: last + 1 }, (_, i) => Math.round((i * depth) / last));
  const random = new Random(seed, "paths");
  const found = tried.map((length) => {
    let total = Number.NEGATIVE_INFINITY;
    for (let draw = 0; draw < draws; draw++) {
      const passed = subset(odds, sums, length, random);
      let gradient: Travelling = { by: cotangent, log: 0 };
      for (let layer = depth - 1; layer >= 0; layer--) if (passed[layer]) gradient = back(branches[layer], gradient);
      const weight = passed.reduce((sum, on, layer) => sum + (on ? odds[layer] : 0), 0);
      total = logSum(total, 2 * (gradient.log + Math.log(rms(gradient.by.data))) - weight);
    }
    return total - Math.log(draws);
  });
  return Float64Array.from({ length: depth + 1 }, (_, length) => interpolated(tried, found, length) + sums[0][length]);
}

function back(branch: Module, { by, log }: Travelling): Travelling {
  return scaled({ by: branch.backward(by), log });
}

function scaled({ by, log }: Travelling): Travelling {
  const size = rms(by.data);
  if (!(size > 0 && size < Number.POSITIVE_INFINITY)) return { by, log };
  return { by: { ...by, data: by.data.map((value) => value / size) as Floats }, log: log + Math.log(size) };
}

/** `2 ln gain`, none so small that its layer would never be drawn. */
function logOdds(gains: Float64Array): Float64Array {
  const least = 0.05 * rms(gains);
  return gains.map((gain) => 2 * Math.log(least > 0 ? Math.max(gain, least) : 1));
}

/** Row l, column k: logarithm of the sum, over all choices of k layers from l on, of the product of their odds. */
function symmetricSums(odds: Float64Array): Float64Array[] {
  const depth = odds.length;
  const rows = Array.from({ length: depth + 1 }, () => new Float64Array(depth + 1).fill(Number.NEGATIVE_INFINITY));
  for (const row of rows) row[0] = 0;
  for (let layer = depth - 1; layer >= 0; layer--) {
    const after = rows[layer + 1];
    for (let k = 1; k <= depth; k++) rows[layer][k] = logSum(after[k], after[k - 1] + odds[layer]);
  }
  return rows;
}

/** `length` of the layers, drawn with a probability in proportion to the product of their odds. */
function subset(odds: Float64Array, sums: Float64Array[], length: number, random: Random): boolean[] {
  let left = length;
  return Array.from(odds, (odd, layer) => {
    if (left === 0) return false;
    const on = random.uniform() < Math.exp(odd + sums[layer + 1][left - 1] - sums[layer][left]);
    if (on) left--;
    return on;
  });
}

function interpolated(tried: readonly number[], found: readonly number[], length: number): number {
  const right = tried.findIndex((one) => one >= length);
  if (tried[right] === length) return found[right];
  const share = (length - tried[right - 1]) / (tried[right] - tried[right - 1]);
  return (1 - share) * found[right - 1] + share * found[right];
}

/** Each layer is passed through its branch with probability `a^2 / (1 + a^2)`, independently: `levada.theory.path_lengths`. */
function poissonBinomial(gains: Float64Array): Float64Array {
  const weights = new Float64Array(gains.length + 1);
  weights[0] = 1;
  gains.forEach((gain, layer) => {
    const passed = Number.isFinite(gain) ? gain ** 2 / (1 + gain ** 2) : 1;
    for (let k = layer + 1; k >= 0; k--) weights[k] = weights[k] * (1 - passed) + (k > 0 ? weights[k - 1] * passed : 0);
  });
  return weights;
}

function logSum(a: number, b: number): number {
  const most = Math.max(a, b);
  return Number.isFinite(most) ? most + Math.log(Math.exp(a - most) + Math.exp(b - most)) : most;
}

function normalised(logs: Float64Array): Float64Array {
  const most = Math.max(...logs);
  const weights = logs.map((log) => Math.exp(log - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}
