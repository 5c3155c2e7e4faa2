/**
 * Matrices in one of two precisions, and the one product that everything is made of.
 *
 * Storage decides the precision: a number is rounded when it is stored in a Float32Array. Between a load and a store
 * everything is float64, so that a sum of products is rounded once, at its end, and not at each term.
 */

import * as kernels from "./kernels";

export type Floats = Float32Array | Float64Array;
export type Precision = "float32" | "float64";

/** Rows of equal length, one after the other. Whoever is given one does not change it. */
export interface Matrix {
  readonly data: Floats;
  readonly rows: number;
  readonly cols: number;
}

export function floats(length: number, precision: Precision): Floats {
  return precision === "float32" ? new Float32Array(length) : new Float64Array(length);
}

export function precisionOf(data: Floats): Precision {
  return data instanceof Float32Array ? "float32" : "float64";
}

/** Of each precision, to make others like it. */
const [SINGLE, DOUBLE] = [new Float32Array(0), new Float64Array(0)];

/** A matrix of zeros in the precision of `like`. */
export function zeros(rows: number, cols: number, like: Floats): Matrix {
  const made = kernels.room(rows * cols, like instanceof Float32Array);
  made?.fill(0);
  return { data: made ?? floats(rows * cols, precisionOf(like)), rows, cols };
}

/** A matrix whose numbers can be anything: for those who write all of them. */
export function unwritten(rows: number, cols: number, like: Floats): Matrix {
  const made = kernels.room(rows * cols, like instanceof Float32Array);
  return { data: made ?? floats(rows * cols, precisionOf(like)), rows, cols };
}

export function matrixFrom(values: ArrayLike<number>, rows: number, cols: number, precision: Precision): Matrix {
  if (values.length !== rows * cols) {
    throw new RangeError(`a matrix of ${rows} x ${cols} needs ${rows * cols} numbers, got ${values.length}.`);
  }
  const x = unwritten(rows, cols, precision === "float32" ? SINGLE : DOUBLE);
  x.data.set(values);
  return x;
}

/** The same numbers as rows of another length. */
export function reshaped(x: Matrix, rows: number, cols: number): Matrix {
  if (rows * cols !== x.data.length) {
    throw new RangeError(`${x.rows} x ${x.cols} numbers cannot be ${rows} x ${cols}.`);
  }
  return { data: x.data, rows, cols };
}

export function sum(x: Matrix, y: Matrix): Matrix {
  const total = unwritten(x.rows, x.cols, x.data);
  const { data } = total;
  if (kernels.each("sum", data, x.data, y.data)) return total;
  for (let i = 0; i < data.length; i++) data[i] = x.data[i] + y.data[i];
  return total;
}

/** Add to `total`, which the caller owns. */
export function addTo(total: Floats, x: Floats): void {
  if (kernels.each("sum", total, total, x)) return;
  for (let i = 0; i < total.length; i++) total[i] += x[i];
}

/** Add a row to each row of `total`, which the caller owns. */
export function addRow(total: Floats, row: Floats): void {
  if (kernels.addRow(total, row)) return;
  const cols = row.length;
  for (let at = 0; at < total.length; at += cols) for (let j = 0; j < cols; j++) total[at + j] += row[j];
}

const SMALLEST_SQUARE = 1e-280;

/** The sum of squares, in float64; Infinity or NaN where one of the numbers is not finite, or has too large a square. */
export function squares(data: Floats): number {
  return kernels.squares(data) ?? dot(data, 0, data, 0, data.length);
}

/**
 * Two sums of squares whose product is below this belong to numbers whose products are finite. An infinite one is what
 * weights of zero would make NaN of, so that they may not be left out.
 */
export const SAFE_SQUARES = 1e280;

/** The sum of squares of each row, in float64. */
export function rowSquares({ data, rows, cols }: Matrix): Float64Array {
  return (
    kernels.rowSquares(data, rows) ??
    Float64Array.from({ length: rows }, (_, r) => dot(data, r * cols, data, r * cols, cols))
  );
}

/** `total_r += factors_r x_r` for each row r; the caller owns the total. */
export function addScaledRows(total: Floats, factors: Float64Array, x: Floats): void {
  if (kernels.addScaledRows(total, factors, x)) return;
  const cols = x.length / factors.length;
  for (let r = 0, at = 0; r < factors.length; r++) {
    const factor = factors[r];
    for (let d = 0; d < cols; d++, at++) total[at] += factor * x[at];
  }
}

/** Whether all are zero. */
export function allZero(data: Floats): boolean {
  for (let i = 0; i < data.length; i++) if (data[i] !== 0) return false;
  return true;
}

/** Root mean square; exact too where squares would overflow or underflow. */
export function rms(data: Floats): number {
  let total = squares(data);
  if (total > SMALLEST_SQUARE && total < Number.POSITIVE_INFINITY) return Math.sqrt(total / data.length);
  let largest = 0;
  for (let i = 0; i < data.length; i++) largest = Math.max(largest, Math.abs(data[i]));
  if (!(largest > 0 && largest < Number.POSITIVE_INFINITY)) return largest;
  total = 0;
  for (let i = 0; i < data.length; i++) total += (data[i] / largest) ** 2;
  return largest * Math.sqrt(total / data.length);
}

/** The sum of products of `length` numbers from two places, in float64: four sums, so that none waits for another. */
export function dot(x: Floats, xAt: number, y: Floats, yAt: number, length: number): number {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  const whole = length - (length % 4);
  for (let i = 0; i < whole; i += 4) {
    s0 += x[xAt + i] * y[yAt + i];
    s1 += x[xAt + i + 1] * y[yAt + i + 1];
    s2 += x[xAt + i + 2] * y[yAt + i + 2];
    s3 += x[xAt + i + 3] * y[yAt + i + 3];
  }
  for (let i = whole; i < length; i++) s0 += x[xAt + i] * y[yAt + i];
  return s0 + s1 + (s2 + s3);
}

/** Where the elements of a factor lie: element (i, j) is at `i * row + j * col`. */
export interface Strides {
  readonly data: Floats;
  readonly row: number;
  readonly col: number;
}

export const plain = (x: Floats, cols: number): Strides => ({ data: x, row: cols, col: 1 });
export const transposed = (x: Floats, cols: number): Strides => ({ data: x, row: 1, col: cols });

/**
 * `out = a b`, or `out += a b`: `out` is m x n, `a` m x k and `b` k x n.
 *
 * Each element is summed in float64, in the order of the inner index, and rounded when it is stored. Two rows by four
 * columns at a time: six loads then serve eight products, and no sum waits for the one before it.
 */
export function product(
  out: Floats,
  a: Strides,
  b: Strides,
  [m, n, k]: readonly [number, number, number],
  accumulate = false,
): void {
  if (!kernels.product(out, n, a, b, [m, n, k], accumulate)) byBlocks(out, a, b, [m, n, k], accumulate);
  if (careful && !accumulate && out instanceof Float32Array) orderNearOverflow(out, a, b, [n, k]);
}

function byBlocks(
  out: Floats,
  a: Strides,
  b: Strides,
  [m, n, k]: readonly [number, number, number],
  accumulate: boolean,
): void {
  const rows = m - (m % 2);
  const cols = n - (n % 4);
  if (panel.length < 4 * k) panel = new Float64Array(4 * k);
  for (let j = 0; j < cols; j += 4) {
    copyColumns(b, j, k);
    fourColumns(out, a, [rows, n, k], j, accumulate);
  }
  const { data: x, row: xRow, col: xCol } = a;
  const { data: y, row: yRow, col: yCol } = b;
  for (let i = 0; i < m; i++) {
    for (let j = i < rows ? cols : 0; j < n; j++) {
      let s = 0;
      for (let l = 0, at = i * xRow, from = j * yCol; l < k; l++, at += xCol, from += yRow) s += x[at] * y[from];
      out[i * n + j] = accumulate ? s + out[i * n + j] : s;
    }
  }
}

const NEAR_OVERFLOW = 1e34; // of root mean squares in float32: weights make of them what sums can lose
let careful = false;

/** Run `work` on numbers of some root mean square, or of none: where they are large, the order of sums decides. */
export function withSize<T>(size: number, work: () => T): T {
  careful = !(size < NEAR_OVERFLOW);
  try {
    return work();
  } finally {
    careful = false;
  }
}

/**
 * Of large sums in float32 some leave the range on the way, though not at their end: those are infinite, or NaN if they
 * leave it on both sides. As in PyTorch on processors with AVX2 or AVX-512: from the first term to the last, each added by
 * a fused operation, which rounds once. What is NaN already stays so in any order.
 */
function orderNearOverflow(out: Float32Array, a: Strides, b: Strides, [n, k]: readonly [number, number]): void {
  for (let at = 0; at < out.length; at++) {
    if (!(Math.abs(out[at]) > NEAR_OVERFLOW)) continue;
    let sum = 0;
    for (let l = 0, x = Math.floor(at / n) * a.row, y = (at % n) * b.col; l < k; l++, x += a.col, y += b.row) {
      sum = Math.fround(sum + a.data[x] * b.data[y]);
    }
    out[at] = sum;
  }
}

/** Four columns of a product's second factor side by side, for all rows of the first; as long as was ever needed. */
let panel = new Float64Array(0);

function copyColumns({ data: y, row: yRow, col: yCol }: Strides, j: number, k: number): void {
  const four = panel;
  for (let q = 0, from = j * yCol; q < 4 * k; q += 4, from += yRow) {
    four[q] = y[from];
    four[q + 1] = y[from + yCol];
    four[q + 2] = y[from + 2 * yCol];
    four[q + 3] = y[from + 3 * yCol];
  }
}

/** Columns j to j + 3 of a product, of which `panel` holds the second factor; an even number of rows. */
function fourColumns(
  out: Floats,
  { data: x, row: xRow, col: xCol }: Strides,
  [rows, n, k]: readonly [number, number, number],
  j: number,
  accumulate: boolean,
): void {
  const four = panel;
  const end = 4 * k;
  for (let i = 0; i < rows; i += 2) {
    const to = i * n + j;
    const below = to + n;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    let t0 = 0;
    let t1 = 0;
    let t2 = 0;
    let t3 = 0;
    for (let q = 0, at = i * xRow; q < end; q += 4, at += xCol) {
      const upper = x[at];
      const lower = x[at + xRow];
      const y0 = four[q];
      const y1 = four[q + 1];
      const y2 = four[q + 2];
      const y3 = four[q + 3];
      s0 += upper * y0;
      s1 += upper * y1;
      s2 += upper * y2;
      s3 += upper * y3;
      t0 += lower * y0;
      t1 += lower * y1;
      t2 += lower * y2;
      t3 += lower * y3;
    }
    out[to] = accumulate ? s0 + out[to] : s0;
    out[to + 1] = accumulate ? s1 + out[to + 1] : s1;
    out[to + 2] = accumulate ? s2 + out[to + 2] : s2;
    out[to + 3] = accumulate ? s3 + out[to + 3] : s3;
    out[below] = accumulate ? t0 + out[below] : t0;
    out[below + 1] = accumulate ? t1 + out[below + 1] : t1;
    out[below + 2] = accumulate ? t2 + out[below + 2] : t2;
    out[below + 3] = accumulate ? t3 + out[below + 3] : t3;
  }
}
