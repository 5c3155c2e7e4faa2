/** What the mixing of streams does over depth: matrices by layer, and the gains of their products. */

import type { Floats } from "./matrix";

/** A layer's matrices, one for each row of the batch. */
export interface LayerMix {
  readonly mix: Floats;
  readonly streams: number;
  /** Whether they are the same for all rows. */
  readonly same?: boolean;
}

/** As the signals of the same names in `levada.probe`. */
export interface Mixing {
  readonly streams: number;
  /** `depth x n x n`, means over the batch; row i makes the new stream i. */
  readonly matrices: Float64Array;
  /** Largest |row sum| of the product from the first layer to each, made row by row of the batch, then averaged. */
  readonly compositeForwardGain: Float64Array;
  /** Largest |column sum| of the product from each layer to the last. */
  readonly compositeBackwardGain: Float64Array;
  /** Largest |log(column sum)| of the same; Infinity where one is not positive. */
  readonly compositeLogColumnSum: Float64Array;
}

export function mixingOverDepth(layers: readonly LayerMix[]): Mixing {
  const [{ streams: n, mix: first }] = layers;
  const size = n * n;
  const rows = layers.every(({ same }) => same) ? 1 : first.length / size; // one stands for all
  const depth = layers.length;
  const matrices = new Float64Array(depth * size);
  const forward = new Float64Array(depth);
  const backward = new Float64Array(depth);
  const logs = new Float64Array(depth);
  let before: Floats | null = null;
  let after: Floats | null = null;
  for (let layer = 0; layer < depth; layer++) {
    const mix = layers[layer].mix.subarray(0, rows * size);
    matrices.set(mean(mix, size, rows), layer * size);
    before = before ? products(mix, before, n, rows) : mix;
    forward[layer] = largestSum(mean(before, size, rows), n, "row");
    const place = depth - 1 - layer;
    const other = layers[place].mix.subarray(0, rows * size);
    after = after ? products(after, other, n, rows) : other;
    const whole = mean(after, size, rows);
    backward[place] = largestSum(whole, n, "column");
    logs[place] = largestLog(whole, n);
  }
  return {
    streams: n,
    matrices,
    compositeForwardGain: forward,
    compositeBackwardGain: backward,
    compositeLogColumnSum: logs,
  };
}

function mean(mix: Floats, size: number, rows: number): Float64Array {
  const result = new Float64Array(size);
  for (let at = 0; at < mix.length; at++) result[at % size] += mix[at] / rows;
  return result;
}

function products(a: Floats, b: Floats, n: number, rows: number): Float64Array {
  const result = new Float64Array(rows * n * n);
  for (let start = 0; start < result.length; start += n * n) {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        let total = 0;
        for (let k = 0; k < n; k++) total += a[start + i * n + k] * b[start + k * n + j];
        result[start + i * n + j] = total;
      }
    }
  }
  return result;
}

function sums(matrix: Float64Array, n: number, side: "row" | "column"): Float64Array {
  const totals = new Float64Array(n);
  for (let at = 0; at < n * n; at++) totals[side === "row" ? Math.floor(at / n) : at % n] += matrix[at];
  return totals;
}

function largestSum(matrix: Float64Array, n: number, side: "row" | "column"): number {
  return Math.max(...sums(matrix, n, side).map(Math.abs));
}

function largestLog(matrix: Float64Array, n: number): number {
  return Math.max(
    ...sums(matrix, n, "column").map((sum) => (sum > 0 ? Math.abs(Math.log(sum)) : Number.POSITIVE_INFINITY)),
  );
}
