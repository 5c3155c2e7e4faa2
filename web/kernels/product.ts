/** The product of two matrices. */

import { one, putOne, putTwo, twice, two } from "./numbers";

/** Four columns of the second factor side by side, in float64; zeros where there are fewer. */
function pack<T>(panel: usize, from: usize, row: usize, col: usize, columns: usize, end: usize): void {
  if (columns >= 4) {
    for (; panel < end; panel += 32, from += row) {
      store<f64>(panel, one<T>(from));
      store<f64>(panel, one<T>(from + col), 8);
      store<f64>(panel, one<T>(from + 2 * col), 16);
      store<f64>(panel, one<T>(from + 3 * col), 24);
    }
    return;
  }
  for (; panel < end; panel += 32, from += row) {
    for (let j: usize = 0; j < 4; j++) store<f64>(panel + 8 * j, j < columns ? one<T>(from + j * col) : 0);
  }
}

/** Store sums of as many columns as there are, four at most, or add them to what is there. */
function put<T>(to: usize, low: v128, high: v128, columns: usize, accumulate: bool): void {
  if (columns === 4) {
    const next = to + 2 * sizeof<T>();
    putTwo<T>(to, accumulate ? f64x2.add(low, two<T>(to)) : low);
    putTwo<T>(next, accumulate ? f64x2.add(high, two<T>(next)) : high);
    return;
  }
  for (let j: usize = 0; j < columns; j++, to += sizeof<T>()) {
    const pair = j < 2 ? low : high;
    const value = j % 2 === 0 ? f64x2.extract_lane(pair, 0) : f64x2.extract_lane(pair, 1);
    putOne<T>(to, accumulate ? value + one<T>(to) : value);
  }
}

/**
 * `out = a b`, or `out += a b`: `out` is m x n, `a` m x k and `b` k x n; strides are in bytes.
 *
 * Four rows by four columns at a time: eight pairs of sums, each in the order of the inner index.
 */
export function productOf<T>(
  out: usize,
  outRow: usize,
  a: usize,
  aRow: usize,
  aCol: usize,
  b: usize,
  bRow: usize,
  bCol: usize,
  m: usize,
  n: usize,
  k: usize,
  accumulate: bool,
  panel: usize,
): void {
  const end = panel + 32 * k;
  for (let j: usize = 0; j < n; j += 4) {
    const columns = min<usize>(n - j, 4);
    pack<T>(panel, b + j * bCol, bRow, bCol, columns, end);
    for (let i: usize = 0; i < m; i += 4) {
      const rows = min<usize>(m - i, 4);
      // Of rows that are not there, the last one stands in, and is not stored.
      let p0 = a + i * aRow;
      let p1 = rows > 1 ? p0 + aRow : p0;
      let p2 = rows > 2 ? p1 + aRow : p1;
      let p3 = rows > 3 ? p2 + aRow : p2;
      let s0 = f64x2.splat(0);
      let s1 = s0;
      let s2 = s0;
      let s3 = s0;
      let s4 = s0;
      let s5 = s0;
      let s6 = s0;
      let s7 = s0;
      for (let q = panel; q < end; q += 32) {
        const y0 = v128.load(q);
        const y1 = v128.load(q, 16);
        let x = twice<T>(p0);
        s0 = f64x2.add(s0, f64x2.mul(x, y0));
        s1 = f64x2.add(s1, f64x2.mul(x, y1));
        x = twice<T>(p1);
        s2 = f64x2.add(s2, f64x2.mul(x, y0));
        s3 = f64x2.add(s3, f64x2.mul(x, y1));
        x = twice<T>(p2);
        s4 = f64x2.add(s4, f64x2.mul(x, y0));
        s5 = f64x2.add(s5, f64x2.mul(x, y1));
        x = twice<T>(p3);
        s6 = f64x2.add(s6, f64x2.mul(x, y0));
        s7 = f64x2.add(s7, f64x2.mul(x, y1));
        p0 += aCol;
        p1 += aCol;
        p2 += aCol;
        p3 += aCol;
      }
      const to = out + i * outRow + j * sizeof<T>();
      put<T>(to, s0, s1, columns, accumulate);
      if (rows > 1) put<T>(to + outRow, s2, s3, columns, accumulate);
      if (rows > 2) put<T>(to + 2 * outRow, s4, s5, columns, accumulate);
      if (rows > 3) put<T>(to + 3 * outRow, s6, s7, columns, accumulate);
    }
  }
}
