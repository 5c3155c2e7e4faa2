/**
 * The exponential of what is not positive, by operations that compiled loops repeat to the last bit; the one that a browser
 * has built in they could not. `kernels/exp.ts` is the same for two numbers at a time.
 *
 * `exp(x) = 2^n exp(r)`: n is the integer nearest to `x / ln 2`, and the series of `exp(r)`, |r| < 0.35, ends where its
 * terms are below rounding. The result is off by one unit in the last place at most.
 */

/** ln 2 in two parts, of which the first has so few digits that its products with n are exact. */
const [LN2_HIGH, LN2_LOW] = [0.6931471803691238, 1.9082149292705877e-10];
/** Added and taken away again, it leaves the nearest integer. */
const ROUND = 1.5 * 2 ** 52;
/** Below it all results are zero. */
const LOWEST = -746;
/** `2^-k`: two of them are multiplied, so that the smallest results are rounded once. */
const HALVES = Float64Array.from({ length: 540 }, (_, k) => 2 ** -k);

/** `exp(x)` for `x <= 0`. */
export function expOfNegative(x: number): number {
  const low = Math.max(x, LOWEST);
  const n = low * Math.LOG2E + ROUND - ROUND;
  const r = low - n * LN2_HIGH - n * LN2_LOW;
  let sum = (1 / 6227020800) * r + 1 / 479001600;
  sum = sum * r + 1 / 39916800;
  sum = sum * r + 1 / 3628800;
  sum = sum * r + 1 / 362880;
  sum = sum * r + 1 / 40320;
  sum = sum * r + 1 / 5040;
  sum = sum * r + 1 / 720;
  sum = sum * r + 1 / 120;
  sum = sum * r + 1 / 24;
  sum = sum * r + 1 / 6;
  sum = sum * r + 0.5;
  sum = sum * r + 1;
  sum = sum * r + 1;
  const half = -n >> 1; // of NaN 0
  return sum * HALVES[half] * HALVES[-n - half];
}
