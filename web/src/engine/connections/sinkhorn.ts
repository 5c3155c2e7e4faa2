/**
 * Sinkhorn normalisation of `exp(logits)`, columns first and rows last, with the exact gradient of its iterations.
 *
 * The stable form of `levada.ops.sinkhorn`: the matrix is `row * kernel * column`, and the iterations change the two
 * factors alone. No step multiplies an entry by more than n^2, so that what underflowed in the kernel cannot have grown
 * to what rounding loses until a known number of steps has passed; then the factors are absorbed, and the kernel is made
 * again of logarithms, in which nothing was lost. All of it in float64, whatever the precision of the network.
 *
 * Many matrices at once lie one after the other, and so do their factors: `(count + 1) n` of rows, `count n` of columns.
 */

/** How many matrices, their size, and how often both sides are normalised. */
export interface SinkhornSizes {
  readonly matrices: number;
  readonly n: number;
  readonly iterations: number;
}

/** Steps in a row over one kernel: n factors after each of them, the rows' from the start on. */
interface Segment {
  readonly kernel: Float64Array;
  readonly rows: Float64Array;
  readonly columns: Float64Array;
  readonly count: number;
  /** Whether its first column step is the softmax that the kernel was made of. */
  readonly first: boolean;
}

/** What `sinkhorn` keeps for its backward pass. */
export interface SinkhornSteps {
  readonly sizes: SinkhornSizes;
  readonly softmax: Float64Array;
  readonly segments: readonly Segment[];
}

type Numbers = { [index: number]: number };

function stepsAtOnce(n: number): number {
  const room = 1022 - 52 - 3; // powers of two between what rounding loses and the smallest normal number
  return n > 1 ? Math.max(1, Math.floor(room / (2 * Math.log2(n)))) : room;
}

/** Logarithms of each column's softmax, with which the first step begins. */
function logSoftmax(logits: ArrayLike<number>, { matrices, n }: SinkhornSizes): Float64Array {
  const logs = new Float64Array(matrices * n * n);
  for (let m = 0, start = 0; m < matrices; m++, start += n * n) {
    for (let j = start; j < start + n; j++) {
      let largest = Number.NEGATIVE_INFINITY;
      for (let i = 0; i < n; i++) largest = Math.max(largest, logits[j + i * n]);
      let sum = 0;
      for (let i = 0; i < n; i++) sum += Math.exp(logits[j + i * n] - largest);
      const total = largest + Math.log(sum);
      for (let i = 0; i < n; i++) logs[j + i * n] = logits[j + i * n] - total;
    }
  }
  return logs;
}

/** Subtract from each row its largest entry, which the first row step undoes. */
function lowerRows(logs: Float64Array, n: number): void {
  for (let start = 0; start < logs.length; start += n) {
    let largest = Number.NEGATIVE_INFINITY;
    for (let j = start; j < start + n; j++) largest = Math.max(largest, logs[j]);
    for (let j = start; j < start + n; j++) logs[j] -= largest;
  }
}

function exponential(logs: Float64Array): Float64Array {
  const result = new Float64Array(logs.length);
  for (let at = 0; at < logs.length; at++) result[at] = Math.exp(logs[at]);
  return result;
}

function scale(kernel: Float64Array, n: number, count: number, first: boolean): Segment {
  const matrices = kernel.length / (n * n);
  const rows = new Float64Array(matrices * (count + 1) * n);
  const columns = new Float64Array(matrices * count * n);
  for (let m = 0; m < matrices; m++) {
    const start = m * n * n;
    let row = m * (count + 1) * n;
    let column = m * count * n;
    for (let i = 0; i < n; i++) rows[row + i] = 1;
    for (let step = 0; step < count; step++, row += n, column += n) {
      for (let j = 0; j < n; j++) {
        let total = 0;
        for (let i = 0; i < n; i++) total += kernel[start + i * n + j] * rows[row + i];
        columns[column + j] = first && step === 0 ? 1 : 1 / total;
      }
      for (let i = 0; i < n; i++) {
        let total = 0;
        for (let j = 0; j < n; j++) total += kernel[start + i * n + j] * columns[column + j];
        rows[row + n + i] = 1 / total;
      }
    }
  }
  return { kernel, rows, columns, count, first };
}

/** Call with the place of each entry, and those of its last factors of row and column. */
function eachEntry(
  { count }: Segment,
  { matrices, n }: SinkhornSizes,
  visit: (at: number, row: number, column: number) => void,
): void {
  for (let m = 0, at = 0; m < matrices; m++) {
    const row = (m * (count + 1) + count) * n;
    const column = (m * count + count - 1) * n;
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++, at++) visit(at, row + i, column + j);
  }
}

/** Write the matrices of the logits to `mix`. */
export function sinkhorn(mix: Numbers, logits: ArrayLike<number>, sizes: SinkhornSizes): SinkhornSteps {
  const { n, iterations } = sizes;
  const logs = logSoftmax(logits, sizes);
  const softmax = exponential(logs);
  lowerRows(logs, n);
  const atOnce = stepsAtOnce(n);
  const segments: Segment[] = [];
  for (let start = 0; start < iterations; start += atOnce) {
    const before = segments.at(-1);
    if (before) {
      eachEntry(before, sizes, (at, row, column) => {
        logs[at] += Math.log(before.rows[row]) + Math.log(before.columns[column]);
      });
    }
    segments.push(scale(exponential(logs), n, Math.min(atOnce, iterations - start), start === 0));
  }
  const last = segments.at(-1)!;
  eachEntry(last, sizes, (at, row, column) => {
    mix[at] = last.kernel[at] * last.rows[row] * last.columns[column];
  });
  return { sizes, softmax, segments };
}

/** Write the gradient by the logits to `byLogits`, given that by the matrices. */
export function sinkhornBackward(byLogits: Numbers, gradient: ArrayLike<number>, steps: SinkhornSteps): void {
  const { sizes, softmax, segments } = steps;
  const { matrices, n } = sizes;
  const byRow = new Float64Array(matrices * n);
  const byColumn = new Float64Array(matrices * n);
  const byKernel = new Float64Array(matrices * n * n);
  const byLogs = new Float64Array(matrices * n * n);
  // By the logarithms of the last factors, and by the kernel.
  const last = segments.at(-1)!;
  eachEntry(last, sizes, (at, row, column) => {
    byKernel[at] = gradient[at] * last.rows[row] * last.columns[column];
    const byEntry = byKernel[at] * last.kernel[at];
    byRow[Math.floor(at / n)] += byEntry;
    byColumn[Math.floor(at / (n * n)) * n + (at % n)] += byEntry;
  });
  for (const segment of segments.toReversed()) {
    for (let m = 0; m < matrices; m++) stepsBackward(segment, m, n, { byRow, byColumn, byKernel });
    // Absorbed factors cancel in the gradient by logarithms: what a kernel was made of does not matter.
    for (let at = 0; at < byLogs.length; at++) byLogs[at] += segment.kernel[at] * byKernel[at];
    byKernel.fill(0);
  }
  for (let m = 0, start = 0; m < matrices; m++, start += n * n) {
    for (let j = start; j < start + n; j++) {
      let total = 0;
      for (let i = 0; i < n; i++) total += byLogs[j + i * n];
      for (let i = 0; i < n; i++) byLogits[j + i * n] = byLogs[j + i * n] - softmax[j + i * n] * total;
    }
  }
}

interface Carried {
  readonly byRow: Float64Array;
  readonly byColumn: Float64Array;
  readonly byKernel: Float64Array;
}

/** Go back over a segment's steps: what each factor gets goes to the kernel and to the factor that it was made of. */
function stepsBackward({ kernel, rows, columns, count, first }: Segment, m: number, n: number, by: Carried): void {
  const { byRow, byColumn, byKernel } = by;
  const start = m * n * n;
  const own = m * n;
  let row = (m * (count + 1) + count - 1) * n;
  let column = (m * count + count - 1) * n;
  for (let step = count - 1; step >= 0; step--, row -= n, column -= n) {
    for (let i = 0; i < n; i++) {
      const part = byRow[own + i] * rows[row + n + i];
      for (let j = 0; j < n; j++) {
        const at = start + i * n + j;
        byKernel[at] -= part * columns[column + j];
        byColumn[own + j] -= columns[column + j] * kernel[at] * part;
      }
    }
    if (first && step === 0) return;
    for (let j = 0; j < n; j++) byColumn[own + j] *= columns[column + j];
    for (let i = 0; i < n; i++) {
      let total = 0;
      for (let j = 0; j < n; j++) {
        const at = start + i * n + j;
        byKernel[at] -= rows[row + i] * byColumn[own + j];
        total += kernel[at] * byColumn[own + j];
      }
      byRow[own + i] = -rows[row + i] * total;
    }
    for (let j = 0; j < n; j++) byColumn[own + j] = 0;
  }
}
