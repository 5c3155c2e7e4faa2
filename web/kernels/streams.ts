/** Streams side by side: each row of a batch has `n` of `dim` numbers, and weights of its own. */

import { dotOf } from "./elementwise";
import { one, putOne, putTwo, two } from "./numbers";

/** `to = sum_j w_j x_j`, in this order, or `to = v f + sum_j w_j x_j` where `f` is not 0; `step` lies between weights. */
function combine<T>(to: usize, w: usize, step: usize, x: usize, n: usize, dim: usize, f: usize, v: f64): void {
  const size = sizeof<T>();
  const stream = dim * size;
  const end = x + (dim & ~1) * size;
  const factor = f64x2.splat(v);
  const w0 = f64x2.splat(one<T>(w));
  const w1 = f64x2.splat(one<T>(w + step));
  for (; x < end; x += 2 * size, to += 2 * size) {
    let total = f64x2.add(f64x2.mul(w0, two<T>(x)), f64x2.mul(w1, two<T>(x + stream)));
    let from = x + 2 * stream;
    for (let j: usize = 2, at = w + 2 * step; j < n; j++, at += step, from += stream) {
      total = f64x2.add(total, f64x2.mul(f64x2.splat(one<T>(at)), two<T>(from)));
    }
    if (f !== 0) {
      total = f64x2.add(f64x2.mul(factor, two<T>(f)), total);
      f += 2 * size;
    }
    putTwo<T>(to, total);
  }
  if ((dim & 1) === 0) return;
  let total = one<T>(w) * one<T>(x);
  for (let j: usize = 1; j < n; j++) total += one<T>(w + j * step) * one<T>(x + j * stream);
  putOne<T>(to, f !== 0 ? v * one<T>(f) + total : total);
}

/** The same of four streams, which there are if nobody chose otherwise: their weights are loaded once. */
function combineFour<T>(to: usize, w: usize, step: usize, x: usize, dim: usize, f: usize, v: f64): void {
  const size = sizeof<T>();
  const stream = dim * size;
  const end = x + (dim & ~1) * size;
  const factor = f64x2.splat(v);
  const w0 = f64x2.splat(one<T>(w));
  const w1 = f64x2.splat(one<T>(w + step));
  const w2 = f64x2.splat(one<T>(w + 2 * step));
  const w3 = f64x2.splat(one<T>(w + 3 * step));
  for (; x < end; x += 2 * size, to += 2 * size) {
    let total = f64x2.add(f64x2.mul(w0, two<T>(x)), f64x2.mul(w1, two<T>(x + stream)));
    total = f64x2.add(total, f64x2.mul(w2, two<T>(x + 2 * stream)));
    total = f64x2.add(total, f64x2.mul(w3, two<T>(x + 3 * stream)));
    if (f !== 0) {
      total = f64x2.add(f64x2.mul(factor, two<T>(f)), total);
      f += 2 * size;
    }
    putTwo<T>(to, total);
  }
}

function combined<T>(to: usize, w: usize, step: usize, x: usize, n: usize, dim: usize, f: usize, v: f64): void {
  if (n === 4 && (dim & 1) === 0) combineFour<T>(to, w, step, x, dim, f, v);
  else combine<T>(to, w, step, x, n, dim, f, v);
}

/** `to_r = sum_j weights_rj x_rj`. */
export function gatherOf<T>(to: usize, weights: usize, x: usize, rows: usize, n: usize, dim: usize): void {
  const size = sizeof<T>();
  for (; rows > 0; rows--, to += dim * size, weights += n * size, x += n * dim * size) {
    combined<T>(to, weights, size, x, n, dim, 0, 0);
  }
}

/** `to_rj += weights_rj x_r`. */
export function spreadOf<T>(to: usize, weights: usize, x: usize, rows: usize, n: usize, dim: usize): void {
  const size = sizeof<T>();
  for (; rows > 0; rows--, x += dim * size) {
    for (let j: usize = 0; j < n; j++, weights += size) {
      const weight = one<T>(weights);
      const weightTwice = f64x2.splat(weight);
      let from = x;
      for (let d = dim >> 1; d > 0; d--, from += 2 * size, to += 2 * size) {
        putTwo<T>(to, f64x2.add(two<T>(to), f64x2.mul(weightTwice, two<T>(from))));
      }
      if (dim & 1) {
        putOne<T>(to, one<T>(to) + weight * one<T>(from));
        to += size;
      }
    }
  }
}

/** `to_ri = write_ri f_r + sum_j mix_rij x_rj`. */
export function mixOf<T>(
  to: usize,
  mix: usize,
  x: usize,
  write: usize,
  f: usize,
  rows: usize,
  n: usize,
  dim: usize,
): void {
  const size = sizeof<T>();
  for (; rows > 0; rows--, x += n * dim * size, f += dim * size) {
    for (let i: usize = 0; i < n; i++, to += dim * size, mix += n * size, write += size) {
      combined<T>(to, mix, size, x, n, dim, f, one<T>(write));
    }
  }
}

/** `to_rj = sum_i mix_rij x_ri`. */
export function mixBackOf<T>(to: usize, mix: usize, x: usize, rows: usize, n: usize, dim: usize): void {
  const size = sizeof<T>();
  for (; rows > 0; rows--, x += n * dim * size, mix += n * n * size) {
    for (let j: usize = 0; j < n; j++, to += dim * size) combined<T>(to, mix + j * size, n * size, x, n, dim, 0, 0);
  }
}

/** Of each row, the products of each of its `nx` streams of x with each of its `ny` of y, in float64. */
export function alongOf<T>(to: usize, x: usize, nx: usize, y: usize, ny: usize, rows: usize, dim: usize): void {
  const stream = dim * sizeof<T>();
  for (; rows > 0; rows--, y += ny * stream) {
    for (let i: usize = 0; i < nx; i++, x += stream) {
      for (let j: usize = 0; j < ny; j++, to += 8) store<f64>(to, dotOf<T>(x, y + j * stream, dim));
    }
  }
}
