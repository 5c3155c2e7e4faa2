/** What is done number by number, and sums over rows. */

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
