/** The exponential of what is not positive: two numbers at a time, otherwise as in `../src/engine/exp.ts`. */

const LN2_HIGH: f64 = 0.6931471803691238;
const LN2_LOW: f64 = 1.9082149292705877e-10;
const ROUND: f64 = 6755399441055744; // 1.5 * 2^52
const LOWEST: f64 = -746;

/** A step of Horner's: the series begins at 1/13!. */
function next(sum: v128, r: v128, coefficient: f64): v128 {
  return f64x2.add(f64x2.mul(sum, r), f64x2.splat(coefficient));
}

/** `2^-k` of two integers from 0 to 1,022. */
function halves(k: v128): v128 {
  return i64x2.shl(i64x2.sub(i64x2.splat(1023), k), 52);
}

export function expOfNegative(x: v128): v128 {
  const low = f64x2.pmax(x, f64x2.splat(LOWEST)); // x where that is NaN
  const rounded = f64x2.add(f64x2.mul(low, f64x2.splat(Math.LOG2E)), f64x2.splat(ROUND));
  const n = f64x2.sub(rounded, f64x2.splat(ROUND));
  const r = f64x2.sub(f64x2.sub(low, f64x2.mul(n, f64x2.splat(LN2_HIGH))), f64x2.mul(n, f64x2.splat(LN2_LOW)));
  let sum = next(f64x2.splat(1.0 / 6227020800), r, 1.0 / 479001600);
  sum = next(sum, r, 1.0 / 39916800);
  sum = next(sum, r, 1.0 / 3628800);
  sum = next(sum, r, 1.0 / 362880);
  sum = next(sum, r, 1.0 / 40320);
  sum = next(sum, r, 1.0 / 5040);
  sum = next(sum, r, 1.0 / 720);
  sum = next(sum, r, 1.0 / 120);
  sum = next(sum, r, 1.0 / 24);
  sum = next(sum, r, 1.0 / 6);
  sum = next(sum, r, 0.5);
  sum = next(sum, r, 1);
  sum = next(sum, r, 1);
  // The low digits of the rounded number are those of n.
  const whole = i64x2.sub(i64x2.splat(0x4338000000000000), rounded); // -n
  const half = i64x2.shr_u(whole, 1);
  return f64x2.mul(f64x2.mul(sum, halves(half)), halves(i64x2.sub(whole, half)));
}
