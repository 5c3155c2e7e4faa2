/** What is done number by number, and sums over rows. */

import { expOfNegative } from "./exp";
import { one, putOne, putTwo, two } from "./numbers";

/** `to = factor x + y`. */
export function scaledSumOf<T>(to: usize, factor: f64, x: usize, y: usize, count: usize): void {
  const end = to + (count & ~1) * sizeof<T>();
  const factors = f64x2.splat(factor);
  for (; to < end; to += 2 * sizeof<T>(), x += 2 * sizeof<T>(), y += 2 * sizeof<T>()) {
    putTwo<T>(to, f64x2.add(f64x2.mul(factors, two<T>(x)), two<T>(y)));
  }
  if (count & 1) putOne<T>(to, factor * one<T>(x) + one<T>(y));
}

/** `to = x + y`; float32 needs no float64 for it: a sum of two is rounded once in either. */
export function sumOf<T>(to: usize, x: usize, y: usize, count: usize): void {
  const each: usize = 16 / sizeof<T>();
  const end = to + (count - (count % each)) * sizeof<T>();
  for (; to < end; to += 16, x += 16, y += 16) {
    v128.store(to, sizeof<T>() === 4 ? f32x4.add(v128.load(x), v128.load(y)) : f64x2.add(v128.load(x), v128.load(y)));
  }
  for (let rest = count % each; rest > 0; rest--, to += sizeof<T>(), x += sizeof<T>(), y += sizeof<T>()) {
    putOne<T>(to, one<T>(x) + one<T>(y));
  }
}

/** `to = x y`. */
export function timesOf<T>(to: usize, x: usize, y: usize, count: usize): void {
  const each: usize = 16 / sizeof<T>();
  const end = to + (count - (count % each)) * sizeof<T>();
  for (; to < end; to += 16, x += 16, y += 16) {
    v128.store(to, sizeof<T>() === 4 ? f32x4.mul(v128.load(x), v128.load(y)) : f64x2.mul(v128.load(x), v128.load(y)));
  }
  for (let rest = count % each; rest > 0; rest--, to += sizeof<T>(), x += sizeof<T>(), y += sizeof<T>()) {
    putOne<T>(to, one<T>(x) * one<T>(y));
  }
}

/** Add a row to each of some. */
export function addRowOf<T>(to: usize, row: usize, rows: usize, cols: usize): void {
  for (; rows > 0; rows--, to += cols * sizeof<T>()) sumOf<T>(to, to, row, cols);
}

/** Two at once: `1 / (1 + e)` and `e / (1 + e)` of `e = exp(-|u|)`, without overflow on either side. */
function sigmoids(u: v128): v128 {
  const ones = f64x2.splat(1);
  const e = expOfNegative(f64x2.neg(f64x2.abs(u)));
  const above = v128.bitselect(ones, e, f64x2.ge(u, f64x2.splat(0)));
  return f64x2.div(above, f64x2.add(ones, e));
}

/** `to = sigmoid(u)`. */
export function sigmoidOf<T>(to: usize, u: usize, count: usize): void {
  const end = to + (count & ~1) * sizeof<T>();
  for (; to < end; to += 2 * sizeof<T>(), u += 2 * sizeof<T>()) putTwo<T>(to, sigmoids(two<T>(u)));
  if (count & 1) putOne<T>(to, f64x2.extract_lane(sigmoids(f64x2.splat(one<T>(u))), 0));
}

/** Zeros for what is below zero; -0 and NaN stay. */
function positive(u: v128): v128 {
  return v128.andnot(u, f64x2.lt(u, f64x2.splat(0)));
}

/** `to = u < 0 ? 0 : u`. */
export function reluOf<T>(to: usize, u: usize, count: usize): void {
  const end = to + (count & ~1) * sizeof<T>();
  for (; to < end; to += 2 * sizeof<T>(), u += 2 * sizeof<T>()) putTwo<T>(to, positive(two<T>(u)));
  if (count & 1) putOne<T>(to, f64x2.extract_lane(positive(f64x2.splat(one<T>(u))), 0));
}

/** `to = g y (1 - y)`: back through a sigmoid that gave y. */
export function sigmoidBackOf<T>(to: usize, g: usize, y: usize, count: usize): void {
  const end = to + (count & ~1) * sizeof<T>();
  const ones = f64x2.splat(1);
  for (; to < end; to += 2 * sizeof<T>(), g += 2 * sizeof<T>(), y += 2 * sizeof<T>()) {
    const s = two<T>(y);
    putTwo<T>(to, f64x2.mul(two<T>(g), f64x2.mul(s, f64x2.sub(ones, s))));
  }
  if (count & 1) {
    const s = one<T>(y);
    putOne<T>(to, one<T>(g) * (s * (1 - s)));
  }
}

/** `to = g (1 - t^2)`: back through a tanh that gave t. */
export function tanhBackOf<T>(to: usize, g: usize, t: usize, count: usize): void {
  const end = to + (count & ~1) * sizeof<T>();
  const ones = f64x2.splat(1);
  for (; to < end; to += 2 * sizeof<T>(), g += 2 * sizeof<T>(), t += 2 * sizeof<T>()) {
    const y = two<T>(t);
    putTwo<T>(to, f64x2.mul(two<T>(g), f64x2.sub(ones, f64x2.mul(y, y))));
  }
  if (count & 1) {
    const y = one<T>(t);
    putOne<T>(to, one<T>(g) * (1 - y * y));
  }
}

/** `to = u <= 0 ? 0 : g`: back through a ReLU of u; as in PyTorch all passes where u is NaN, and no infinity becomes NaN. */
export function reluBackOf<T>(to: usize, g: usize, u: usize, count: usize): void {
  const end = to + (count & ~1) * sizeof<T>();
  const zeros = f64x2.splat(0);
  for (; to < end; to += 2 * sizeof<T>(), g += 2 * sizeof<T>(), u += 2 * sizeof<T>()) {
    putTwo<T>(to, v128.andnot(two<T>(g), f64x2.le(two<T>(u), zeros)));
  }
  if (count & 1) putOne<T>(to, one<T>(u) <= 0 ? 0 : one<T>(g));
}

/** `to = x + t (f - x)`: what a highway's gate t lets through of the branch, and of the rest what came. */
export function gateOf<T>(to: usize, x: usize, f: usize, t: usize, count: usize): void {
  const end = to + (count & ~1) * sizeof<T>();
  for (; to < end; to += 2 * sizeof<T>(), x += 2 * sizeof<T>(), f += 2 * sizeof<T>(), t += 2 * sizeof<T>()) {
    const skip = two<T>(x);
    putTwo<T>(to, f64x2.add(skip, f64x2.mul(two<T>(t), f64x2.sub(two<T>(f), skip))));
  }
  if (count & 1) putOne<T>(to, one<T>(x) + one<T>(t) * (one<T>(f) - one<T>(x)));
}

/** Back: `to = byBranch + g (1 - t)`, and by the gate `byGate = g (f - x)`. */
export function gateBackOf<T>(
  to: usize,
  byGate: usize,
  byBranch: usize,
  g: usize,
  x: usize,
  f: usize,
  t: usize,
  count: usize,
): void {
  const size = sizeof<T>();
  const ones = f64x2.splat(1);
  const whole = (count & ~1) * size;
  for (let i: usize = 0; i < whole; i += 2 * size) {
    const given = two<T>(g + i);
    putTwo<T>(byGate + i, f64x2.mul(given, f64x2.sub(two<T>(f + i), two<T>(x + i))));
    putTwo<T>(to + i, f64x2.add(two<T>(byBranch + i), f64x2.mul(given, f64x2.sub(ones, two<T>(t + i)))));
  }
  if ((count & 1) === 0) return;
  const given = one<T>(g + whole);
  putOne<T>(byGate + whole, given * (one<T>(f + whole) - one<T>(x + whole)));
  putOne<T>(to + whole, one<T>(byBranch + whole) + given * (1 - one<T>(t + whole)));
}

/** Copy `count` columns of each row, or add them to what is there; from and to rows of any length. */
export function columnsOf<T>(
  to: usize,
  toRow: usize,
  from: usize,
  fromRow: usize,
  rows: usize,
  count: usize,
  add: bool,
): void {
  for (; rows > 0; rows--, to += toRow, from += fromRow) {
    if (add) sumOf<T>(to, to, from, count);
    else memory.copy(to, from, count * sizeof<T>());
  }
}

/** `to_r += factors_r x_r`, row by row; factors are float64. */
export function addScaledRowsOf<T>(to: usize, factors: usize, x: usize, rows: usize, cols: usize): void {
  for (; rows > 0; rows--, to += cols * sizeof<T>(), x += cols * sizeof<T>(), factors += 8) {
    scaledSumOf<T>(to, load<f64>(factors), x, to, cols);
  }
}

/** `to_r = x_r . x_r`, row by row, in float64. */
export function rowSquaresOf<T>(to: usize, x: usize, rows: usize, cols: usize): void {
  for (; rows > 0; rows--, to += 8, x += cols * sizeof<T>()) store<f64>(to, dotOf<T>(x, x, cols));
}

/** The sum of products; four sums, so that none waits for another. */
export function dotOf<T>(x: usize, y: usize, count: usize): f64 {
  let low = f64x2.splat(0);
  let high = f64x2.splat(0);
  const end = x + (count & ~3) * sizeof<T>();
  for (; x < end; x += 4 * sizeof<T>(), y += 4 * sizeof<T>()) {
    low = f64x2.add(low, f64x2.mul(two<T>(x), two<T>(y)));
    high = f64x2.add(high, f64x2.mul(two<T>(x + 2 * sizeof<T>()), two<T>(y + 2 * sizeof<T>())));
  }
  let first = f64x2.extract_lane(low, 0);
  for (let rest = count & 3; rest > 0; rest--, x += sizeof<T>(), y += sizeof<T>()) first += one<T>(x) * one<T>(y);
  return first + f64x2.extract_lane(low, 1) + (f64x2.extract_lane(high, 0) + f64x2.extract_lane(high, 1));
}
