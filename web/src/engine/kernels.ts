/**
 * The engine's inner loops in WebAssembly, and the memory that they work in.
 *
 * Each function does what the TypeScript behind its call would, to the last bit, and says whether it did: not where there
 * is no WebAssembly, and not with numbers that lie outside of its memory. While `within` runs, matrices are made in there,
 * one behind the other, and nothing is freed; when it ends all of them are lost.
 */

import type { Floats } from "./matrix";

type Each = (single: boolean, to: number, x: number, y: number, count: number) => void;
type Map = (single: boolean, to: number, u: number, count: number) => void;
type Weighed = (single: boolean, to: number, w: number, x: number, rows: number, n: number, dim: number) => void;

/** Places are in bytes; `single` says that numbers are float32. See `web/kernels/`. */
interface Exports {
  product(
    single: boolean,
    out: number,
    outRow: number,
    a: number,
    aRow: number,
    aCol: number,
    b: number,
    bRow: number,
    bCol: number,
    m: number,
    n: number,
    k: number,
    accumulate: boolean,
    panel: number,
  ): void;
  sum: Each;
  times: Each;
  sigmoid: Map;
  relu: Map;
  sigmoidBack: Each;
  tanhBack: Each;
  reluBack: Each;
  gate(single: boolean, to: number, x: number, f: number, t: number, count: number): void;
  gateBack(
    single: boolean,
    to: number,
    byGate: number,
    byBranch: number,
    g: number,
    x: number,
    f: number,
    t: number,
    count: number,
  ): void;
  columns(
    single: boolean,
    to: number,
    toRow: number,
    from: number,
    fromRow: number,
    rows: number,
    count: number,
    add: boolean,
  ): void;
  addScaledRows(single: boolean, to: number, factors: number, x: number, rows: number, cols: number): void;
  rowSquares(single: boolean, to: number, x: number, rows: number, cols: number): void;
  scaledSum(single: boolean, to: number, factor: number, x: number, y: number, count: number): void;
  addRow(single: boolean, to: number, row: number, rows: number, cols: number): void;
  dot(single: boolean, x: number, y: number, count: number): number;
  along(single: boolean, to: number, x: number, nx: number, y: number, ny: number, rows: number, dim: number): void;
  gather: Weighed;
  spread: Weighed;
  mixBack: Weighed;
  mix(
    single: boolean,
    to: number,
    mix: number,
    x: number,
    write: number,
    f: number,
    rows: number,
    n: number,
    dim: number,
  ): void;
}

const PAGE = 2 ** 16;
const FIRST = 16; // bytes that stay free, so that no number lies at 0
const INITIAL = 2 ** 26;
const MOST = 2 ** 28; // bytes: what is beyond lies elsewhere, and is computed by TypeScript

let loops: Exports | null = null;
let memory: WebAssembly.Memory | null = null;
let buffer: ArrayBufferLike | null = null;
/** Where the next matrix goes; 0 while none is to be made here. */
let top = 0;
/** Bytes of which there was no room. */
let missed = 0;

/** Use compiled loops from now on, or with null none; false where this place has or allows no WebAssembly with vectors. */
export function accelerate(code: BufferSource | null): boolean {
  loops = null;
  memory = null;
  buffer = null;
  if (code === null) return false;
  try {
    const own = new WebAssembly.Memory({ initial: INITIAL / PAGE, maximum: MOST / PAGE });
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(code), { env: { memory: own } });
    loops = exports as unknown as Exports;
    memory = own;
    buffer = own.buffer;
    return true;
  } catch {
    return false; // by the policy of a page, or for want of vectors or room
  }
}

/** Run `work`, whose matrices are made where the loops are. */
export function within<T>(work: () => T): T {
  if (memory === null || top > 0) return work();
  if (missed > 0) grow();
  top = FIRST;
  try {
    return work();
  } finally {
    top = 0;
  }
}

/** As there are no matrices in it now, none can lose its place. */
function grow(): void {
  const had = memory!.buffer.byteLength;
  const wanted = Math.min(Math.ceil((1.25 * (had + missed)) / PAGE), MOST / PAGE);
  missed = 0;
  try {
    if (wanted > had / PAGE) memory!.grow(wanted - had / PAGE);
  } catch {
    // There is no more: what does not fit lies elsewhere.
  }
  buffer = memory!.buffer;
}

/** Room for numbers of a precision, with whatever was there before; null if there is none here. */
export function room(length: number, single: boolean): Floats | null {
  if (top === 0) return null;
  const place = take(length * (single ? 4 : 8));
  if (place === 0) return null;
  return single ? new Float32Array(buffer!, place, length) : new Float64Array(buffer!, place, length);
}

/** Bytes; 0 if there are not so many. */
function take(size: number): number {
  const place = top;
  const end = place + Math.ceil(size / 16) * 16;
  if (end > buffer!.byteLength) {
    missed += size;
    return 0;
  }
  top = end;
  return place;
}

const isSingle = (data: Floats): boolean => data instanceof Float32Array;

/** Where numbers of one precision lie in here, or 0. */
function at(data: Floats, single: boolean): number {
  return data.buffer === buffer && isSingle(data) === single ? data.byteOffset : 0;
}

/** The same; numbers from elsewhere are copied. */
function brought(data: Floats, single: boolean): number {
  const known = at(data, single);
  if (known > 0) return known;
  const copy = isSingle(data) === single ? room(data.length, single) : null;
  copy?.set(data);
  return copy?.byteOffset ?? 0;
}

interface Factor {
  readonly data: Floats;
  readonly row: number;
  readonly col: number;
}

/** See `matrix.ts`. */
export function product(
  out: Floats,
  outRow: number,
  a: Factor,
  b: Factor,
  [m, n, k]: readonly [number, number, number],
  accumulate: boolean,
): boolean {
  if (top === 0) return false;
  const before = top;
  const single = isSingle(out);
  const size = single ? 4 : 8;
  const to = accumulate || at(out, single) > 0 ? brought(out, single) : (room(out.length, single)?.byteOffset ?? 0);
  const [x, y] = [brought(a.data, single), brought(b.data, single)];
  const panel = take(32 * k);
  const done = to > 0 && x > 0 && y > 0 && panel > 0;
  if (done) {
    const [aRow, aCol, bRow, bCol] = [a.row * size, a.col * size, b.row * size, b.col * size];
    loops!.product(single, to, outRow * size, x, aRow, aCol, y, bRow, bCol, m, n, k, accumulate, panel);
    if (at(out, single) === 0) {
      out.set(single ? new Float32Array(buffer!, to, out.length) : new Float64Array(buffer!, to, out.length));
    }
  }
  top = before;
  return done;
}

/** Through an activation. */
export type Forth = "sigmoid" | "relu";

/** `to = phi(u)`, in place too. */
export function map(loop: Forth, to: Floats, u: Floats): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const [a, b] = [at(to, single), at(u, single)];
  if (a === 0 || b === 0) return false;
  loops![loop](single, a, b, to.length);
  return true;
}

/** Back through an activation: the gradient, and what it returned, or for `reluBack` what it was given. */
export type Back = "sigmoidBack" | "tanhBack" | "reluBack";

/** `to = x + y`, `to = x y`, or `to = x phi'`, where y says the slope. */
export function each(loop: "sum" | "times" | Back, to: Floats, x: Floats, y: Floats): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const [a, b, c] = [at(to, single), at(x, single), at(y, single)];
  if (a === 0 || b === 0 || c === 0) return false;
  loops![loop](single, a, b, c, to.length);
  return true;
}

/** `to = factor x + y`. */
export function scaledSum(to: Floats, factor: number, x: Floats, y: Floats): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const [a, b, c] = [at(to, single), at(x, single), at(y, single)];
  if (a === 0 || b === 0 || c === 0) return false;
  loops!.scaledSum(single, a, factor, b, c, to.length);
  return true;
}

/** Add a row to each row. */
export function addRow(to: Floats, row: Floats): boolean {
  if (top === 0) return false;
  const before = top;
  const single = isSingle(to);
  const a = at(to, single);
  const b = a === 0 ? 0 : brought(row, single);
  if (b > 0) loops!.addRow(single, a, b, to.length / row.length, row.length);
  top = before;
  return b > 0;
}

/** The sum of squares; null where it must be computed elsewhere. */
export function squares(x: Floats): number | null {
  if (top === 0) return null;
  const single = isSingle(x);
  const a = at(x, single);
  return a > 0 ? loops!.dot(single, a, a, x.length) : null;
}

/** Of streams, see `connections/streams.ts`: rows, streams and numbers of each. */
export interface Sizes {
  readonly rows: number;
  readonly n: number;
  readonly dim: number;
}

/** `to_r = sum_j weights_rj x_rj`, `to_rj += weights_rj x_r`, or `to_rj = sum_i weights_rij x_ri`. */
export function weighed(
  loop: "gather" | "spread" | "mixBack",
  to: Floats,
  weights: Floats,
  x: Floats,
  { rows, n, dim }: Sizes,
): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const [a, b, c] = [at(to, single), at(weights, single), at(x, single)];
  if (a === 0 || b === 0 || c === 0) return false;
  loops![loop](single, a, b, c, rows, n, dim);
  return true;
}

/** `to_ri = write_ri f_r + sum_j mix_rij x_rj`. */
export function mix(to: Floats, mix: Floats, x: Floats, write: Floats, f: Floats, { rows, n, dim }: Sizes): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const [a, b, c, d, e] = [at(to, single), at(mix, single), at(x, single), at(write, single), at(f, single)];
  if (a === 0 || b === 0 || c === 0 || d === 0 || e === 0) return false;
  loops!.mix(single, a, b, c, d, e, rows, n, dim);
  return true;
}

/** Of each row, the products of each of its `nx` streams of x with each of its `ny` of y; null where it must be elsewhere. */
export function along(x: Floats, nx: number, y: Floats, ny: number, { rows, dim }: Omit<Sizes, "n">): Floats | null {
  if (top === 0) return null;
  const single = isSingle(x);
  const [a, b] = [at(x, single), at(y, single)];
  const found = a > 0 && b > 0 ? room(rows * nx * ny, false) : null;
  if (found) loops!.along(single, found.byteOffset, a, nx, b, ny, rows, dim);
  return found;
}

/** A part of each row: `count` columns, the first of them `start`, of rows of `cols` numbers. */
export interface Columns {
  readonly data: Floats;
  readonly cols: number;
  readonly start: number;
}

/** Copy columns from one to the other, or add them. */
export function columns(to: Columns, from: Columns, rows: number, count: number, add: boolean): boolean {
  if (top === 0) return false;
  const single = isSingle(to.data);
  const size = single ? 4 : 8;
  const [a, b] = [at(to.data, single), at(from.data, single)];
  if (a === 0 || b === 0) return false;
  loops!.columns(
    single,
    a + to.start * size,
    to.cols * size,
    b + from.start * size,
    from.cols * size,
    rows,
    count,
    add,
  );
  return true;
}

/** `to = x + t (f - x)`. */
export function gate(to: Floats, x: Floats, f: Floats, t: Floats): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const [a, b, c, d] = [at(to, single), at(x, single), at(f, single), at(t, single)];
  if (a === 0 || b === 0 || c === 0 || d === 0) return false;
  loops!.gate(single, a, b, c, d, to.length);
  return true;
}

/** `to = byBranch + g (1 - t)` and `byGate = g (f - x)`. */
export function gateBack(
  to: Floats,
  byGate: Floats,
  byBranch: Floats,
  g: Floats,
  [x, f, t]: readonly [Floats, Floats, Floats],
): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const places = [at(to, single), at(byGate, single), at(byBranch, single), at(g, single)];
  const kept = [at(x, single), at(f, single), at(t, single)];
  if (places.includes(0) || kept.includes(0)) return false;
  const [a, b, c, d] = places;
  loops!.gateBack(single, a, b, c, d, kept[0], kept[1], kept[2], to.length);
  return true;
}

/** `to_r += factors_r x_r`. */
export function addScaledRows(to: Floats, factors: Float64Array, x: Floats): boolean {
  if (top === 0) return false;
  const single = isSingle(to);
  const [a, b] = [at(to, single), at(x, single)];
  if (a === 0 || b === 0) return false;
  const before = top;
  const c = brought(factors, false);
  if (c > 0) loops!.addScaledRows(single, a, c, b, factors.length, x.length / factors.length);
  top = before;
  return c > 0;
}

/** The sum of squares of each row; null where it must be computed elsewhere. */
export function rowSquares(x: Floats, rows: number): Float64Array | null {
  if (top === 0) return null;
  const single = isSingle(x);
  const a = at(x, single);
  const found = a > 0 ? (room(rows, false) as Float64Array | null) : null;
  if (found) loops!.rowSquares(single, found.byteOffset, a, rows, x.length / rows);
  return found;
}
