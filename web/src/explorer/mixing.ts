/** Mixing matrices away from their start, and Sinkhorn's iterations one by one: the engine's functions, no network. */

import { sinkhorn } from "../engine/connections/sinkhorn";
import { type Mixing, mixingOverDepth } from "../engine/mixing";
import { Random } from "../engine/random";
import type { Series } from "../figures/series";
import { listed, short } from "../page/number";

const OFF_DIAGONAL = -6; // of the logits, where levada's mHC starts: near the identity
export const PER_ENTRY = 10; // logits that move as far as an entry moves by 1: a tenth of a logit changes little

/** Normal numbers for each layer, the same ones for both kinds of mixing and any depth. */
function drawn(layer: number, n: number, seed: number): Float64Array {
  const numbers = new Float64Array(n * n);
  new Random(seed, `layers.${layer}.mixing`).fillNormal(numbers, 1);
  return numbers;
}

const isDiagonal = (at: number, n: number) => at % (n + 1) === 0;

/** What Sinkhorn's iterations are given for a layer. */
export function logitsOf(layer: number, n: number, seed: number, spread: number): Float64Array {
  return drawn(layer, n, seed).map((z, at) => (isDiagonal(at, n) ? 0 : OFF_DIAGONAL) + PER_ENTRY * spread * z);
}

export interface Away {
  readonly depth: number;
  readonly streams: number;
  readonly iterations: number;
  readonly seed: number;
  /** Standard deviation of what is added to every entry of HC's matrices; ten times it to every logit of mHC's. */
  readonly spread: number;
}

/** The mixing of a stack whose matrices have moved away from their start, as free numbers (HC) and by Sinkhorn (mHC). */
export function away({ depth, streams: n, iterations, seed, spread }: Away): { hyper: Mixing; manifold: Mixing } {
  const layers = Array.from({ length: depth }, (_, layer) => layer);
  const hyper = layers.map((layer) => ({
    streams: n,
    mix: drawn(layer, n, seed).map((z, at) => (isDiagonal(at, n) ? 1 : 0) + spread * z),
  }));
  const manifold = layers.map((layer) => {
    const mix = new Float64Array(n * n);
    sinkhorn(mix, logitsOf(layer, n, seed, spread), { matrices: 1, n, iterations });
    return { streams: n, mix };
  });
  return { hyper: mixingOverDepth(hyper), manifold: mixingOverDepth(manifold) };
}

export interface Step {
  readonly matrix: Float64Array;
  readonly rows: Float64Array;
  readonly columns: Float64Array;
  /** Largest |sum - 1|. */
  readonly rowError: number;
  readonly columnError: number;
}

/** The matrix after 1, 2, ... iterations: columns are normalised first, rows last. */
export function steps(logits: Float64Array, n: number, most: number): Step[] {
  return Array.from({ length: most }, (_, at) => {
    const matrix = new Float64Array(n * n);
    sinkhorn(matrix, logits, { matrices: 1, n, iterations: at + 1 });
    return { matrix, ...sums(matrix, n) };
  });
}

export function sums(matrix: ArrayLike<number>, n: number): Omit<Step, "matrix"> {
  const [rows, columns] = [new Float64Array(n), new Float64Array(n)];
  for (let at = 0; at < n * n; at++) {
    rows[Math.floor(at / n)] += matrix[at];
    columns[at % n] += matrix[at];
  }
  const error = (totals: Float64Array) => totals.reduce((worst, sum) => Math.max(worst, Math.abs(sum - 1)), 0);
  return { rows, columns, rowError: error(rows), columnError: error(columns) };
}

/** Below this a sum of n numbers near 1 differs from 1 by the rounding of float64 alone. */
export const rounding = (n: number): number => n * Number.EPSILON;

/** How far sums are from 1, step after step, where that is more than rounding. */
export function errorLines(all: readonly Step[], n: number): Series[] {
  const x = all.map((_, at) => at + 1);
  const columns = all.map(({ columnError }) => columnError);
  const rows = all.map(({ rowError }) => rowError);
  const lines = [
    { label: "columns", colour: 0, style: "measured", x, y: columns },
    { label: "rows", colour: 1, style: "measured", x, y: rows },
  ] as const;
  const lacking = (y: readonly number[]) => y.map((error) => Number(error <= rounding(n)));
  return lines.map((one) => ({ ...one, lacking: lacking(one.y) })).filter((one) => one.lacking.includes(0));
}

/** What such lines leave out. */
export function leftOut(all: readonly Step[], n: number): string {
  const least = rounding(n);
  const columns = all.findIndex(({ columnError }) => columnError <= least) + 1;
  const rows = all.every(({ rowError }) => rowError <= least);
  const said = [
    ...(rows ? ["rows, which are normalised last,"] : []),
    ...(columns > 0 ? [`columns ${columns > 1 ? `from iteration ${columns}` : "from the first iteration"} on`] : []),
  ];
  if (said.length === 0) return "";
  const known = `Sums that differ from 1 by ${short(least, 2)} or less do so by the rounding of float64, and are not drawn`;
  return `${known}: ${listed(said).replace(/,$/, "")}.`;
}

/** At most `most` layers, evenly, the first and the last among them. */
export function some(depth: number, most: number): number[] {
  const count = Math.min(depth, most);
  const places = Array.from({ length: count }, (_, at) => Math.round((at * (depth - 1)) / Math.max(count - 1, 1)));
  return [...new Set(places)];
}
