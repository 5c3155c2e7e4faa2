/** A heat map's cells: sites by steps, each a few samples' logarithms, and how they are spread over pixels. */

/** What a cell holds beside numbers. */
export const ZERO = 1;
export const INFINITE = 2;
/** A tensor that is not finite; where INFINITE is not said too, it is NaN. */
export const NAN = 4;

export interface Cells {
  /** First site of each row, and behind the last one its end. */
  readonly rows: ArrayLike<number>;
  /** First step of each column, rising, and behind the last one its end. A column stands until the next. */
  readonly columns: ArrayLike<number>;
  /** Row by row: mean, least and largest logarithm to base 10 of the finite numbers that are not 0; NaN without one. */
  readonly mean: Float32Array;
  readonly low: Float32Array;
  readonly high: Float32Array;
  /** Which of ZERO, INFINITE and NAN a cell holds. */
  readonly marks: Uint8Array;
}

/** The row or column in which a place lies; -1 outside of all. */
export function indexOf(edges: ArrayLike<number>, place: number): number {
  let [low, high] = [0, edges.length - 2];
  if (high < 0 || !(place >= edges[0]) || place >= edges[high + 1]) return -1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (edges[middle] <= place) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The index at the middle of each of `count` pixels between two places. */
export function spread(edges: ArrayLike<number>, from: number, to: number, count: number): Int32Array {
  const found = new Int32Array(count);
  for (let pixel = 0; pixel < count; pixel++) {
    found[pixel] = indexOf(edges, from + ((pixel + 0.5) / count) * (to - from));
  }
  return found;
}

/** The least and the largest mean; null if there is no number at all. */
export function extent(cells: Cells): [number, number] | null {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of cells.mean) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** Which marks are drawn in any cell. */
export function marked(cells: Cells): number {
  let found = 0;
  for (const mark of cells.marks) found |= mark & INFINITE ? INFINITE : mark & NAN ? NAN : mark;
  return found;
}

/** What a cell holds, in a word where it is no number; the worst, if several. */
export function markOf(marks: number): "zero" | "infinite" | "NaN" | null {
  if (marks & INFINITE) return "infinite";
  if (marks & NAN) return "NaN";
  return marks & ZERO ? "zero" : null;
}

/** Colours as a canvas' pixels have them: red in the lowest byte. */
export interface Palette {
  readonly ramp: Uint32Array;
  /** Of what is exactly zero, drawn dotted. */
  readonly zero: number;
  /** Of what is infinite, drawn full, or NaN, drawn striped. */
  readonly broken: number;
}

interface Window {
  readonly x: { readonly from: number; readonly to: number };
  readonly y: { readonly from: number; readonly to: number };
}

/**
 * Paint cells over the pixels of an image, `width` a row; what they do not cover stays as it was.
 *
 * A mark is a pattern and not a colour alone. Where a cell holds a mark and numbers, the mark is drawn.
 */
export function paint(
  image: Uint32Array,
  width: number,
  cells: Cells,
  seen: Window,
  range: readonly [number, number],
  palette: Palette,
): void {
  const height = image.length / width;
  const across = spread(cells.columns, seen.x.from, seen.x.to, width);
  const down = spread(cells.rows, seen.y.from, seen.y.to, height);
  const count = cells.columns.length - 1;
  const most = palette.ramp.length - 1;
  const slope = range[1] > range[0] ? most / (range[1] - range[0]) : 0;
  for (let y = 0; y < height; y++) {
    if (down[y] < 0) continue;
    const row = down[y] * count;
    for (let x = 0; x < width; x++) {
      if (across[x] < 0) continue;
      const cell = row + across[x];
      const mark = cells.marks[cell];
      if (mark) {
        const ink = pattern(mark, x, y);
        image[y * width + x] = ink ? (mark & (NAN | INFINITE) ? palette.broken : palette.zero) : 0;
        continue;
      }
      const value = cells.mean[cell];
      if (Number.isNaN(value)) {
        image[y * width + x] = 0; // not measured
        continue;
      }
      const level = Math.round((value - range[0]) * slope);
      image[y * width + x] = palette.ramp[Math.max(0, Math.min(level, most))];
    }
  }
}

function pattern(mark: number, x: number, y: number): boolean {
  if (mark & INFINITE) return true;
  if (mark & NAN) return (x + y) % 6 < 3;
  return x % 3 === 0 && y % 3 === 0;
}

/** One row of the cells as values by column. */
export function rowOf(cells: Cells, row: number): { mean: Float32Array; marks: Uint8Array } {
  const count = cells.columns.length - 1;
  const part = [row * count, (row + 1) * count] as const;
  return { mean: cells.mean.subarray(...part), marks: cells.marks.subarray(...part) };
}

/**
 * The logarithm of a ratio, cell by cell: of `a` over `b`, in the rows and columns of `a`.
 *
 * Both have the same rows. A column of `a` meets that of `b` which stands at its first step, as a column stands from
 * its sample on; where one has no number, the ratio has none, and where one has a mark, so has the ratio.
 */
export function ratio(a: Cells, b: Cells): Cells {
  const [count, others] = [a.columns.length - 1, b.columns.length - 1];
  const size = a.mean.length;
  const made = { mean: new Float32Array(size).fill(Number.NaN), marks: new Uint8Array(size) };
  for (let column = 0; column < count; column++) {
    const other = indexOf(b.columns, a.columns[column]);
    if (other < 0) continue;
    for (let row = 0; row < a.rows.length - 1; row++) {
      const [at, with_] = [row * count + column, row * others + other];
      made.mean[at] = a.mean[at] - b.mean[with_];
      made.marks[at] = a.marks[at] | b.marks[with_];
    }
  }
  return { rows: a.rows, columns: a.columns, ...made, low: made.mean, high: made.mean };
}
