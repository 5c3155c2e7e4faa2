/**
 * Sinkhorn normalisation of `exp(logits)`, columns first and rows last, with the exact gradient of its iterations.
 *
 * The stable form of `levada.ops.sinkhorn`: the matrix is `row * kernel * column`, and the iterations change the two
 * factors alone. No step multiplies an entry by more than n^2, so that what underflowed in the kernel cannot have grown
 * to what rounding loses until a known number of steps has passed; then the factors are absorbed, and the kernel is made
 * again of logarithms, in which nothing was lost. All of it in float64, whatever the precision of the network.
 */

/** Steps in a row over one kernel: n factors after each of them, the rows' from the start on. */
interface Segment {
  readonly kernel: Float64Array;
  readonly rows: Float64Array;
  readonly columns: Float64Array;
  readonly count: number;
}

/** What `sinkhorn` keeps for its backward pass. */
export interface SinkhornSteps {
  readonly softmax: Float64Array;
  readonly segments: readonly Segment[];
}

function stepsAtOnce(n: number): number {
  const room = 1022 - 52 - 3; // powers of two between what rounding loses and the smallest normal number
  return n > 1 ? Math.max(1, Math.floor(room / (2 * Math.log2(n)))) : room;
}

/** Logarithms of each column's softmax, with which the first step begins. */
function logSoftmax(logits: ArrayLike<number>, offset: number, n: number): Float64Array {
  const logs = new Float64Array(n * n);
  for (let j = 0; j < n; j++) {
    let largest = Number.NEGATIVE_INFINITY;
    for (let i = 0; i < n; i++) largest = Math.max(largest, logits[offset + i * n + j]);
    let sum = 0;
    for (let i = 0; i < n; i++) sum += Math.exp(logits[offset + i * n + j] - largest);
    const total = largest + Math.log(sum);
    for (let i = 0; i < n; i++) logs[i * n + j] = logits[offset + i * n + j] - total;
  }
  return logs;
}

/** One segment of `count` steps; the very first column step is the softmax that the kernel was made of. */
function scale(kernel: Float64Array, n: number, count: number, first: boolean): Segment {
  const rows = new Float64Array((count + 1) * n);
  const columns = new Float64Array(count * n);
  rows.fill(1, 0, n);
  for (let step = 0, at = 0; step < count; step++, at += n) {
    for (let j = 0; j < n; j++) {
      let total = 0;
      for (let i = 0; i < n; i++) total += kernel[i * n + j] * rows[at + i];
      columns[at + j] = first && step === 0 ? 1 : 1 / total;
    }
    for (let i = 0; i < n; i++) {
      let total = 0;
      for (let j = 0; j < n; j++) total += kernel[i * n + j] * columns[at + j];
      rows[at + n + i] = 1 / total;
    }
  }
  return { kernel, rows, columns, count };
}

function lastFactors({ rows, columns, count }: Segment, n: number): [Float64Array, Float64Array] {
  return [rows.subarray(count * n), columns.subarray((count - 1) * n)];
}

/** Write the matrix of `logits[offset...]` to `mix[offset...]`. */
export function sinkhorn(
  mix: { [index: number]: number },
  logits: ArrayLike<number>,
  offset: number,
  n: number,
  iterations: number,
): SinkhornSteps {
  const logs = logSoftmax(logits, offset, n);
  const softmax = logs.map(Math.exp);
  for (let i = 0; i < n; i++) {
    const row = logs.subarray(i * n, (i + 1) * n);
    const largest = Math.max(...row); // the first row step undoes any factor of a row
    for (let j = 0; j < n; j++) row[j] -= largest;
  }
  const atOnce = stepsAtOnce(n);
  const segments: Segment[] = [];
  for (let start = 0; start < iterations; start += atOnce) {
    const last = segments.at(-1);
    if (last) {
      const [row, column] = lastFactors(last, n);
      for (let at = 0; at < n * n; at++) logs[at] += Math.log(row[Math.floor(at / n)]) + Math.log(column[at % n]);
    }
    segments.push(scale(logs.map(Math.exp), n, Math.min(atOnce, iterations - start), start === 0));
  }
  const last = segments.at(-1)!;
  const [row, column] = lastFactors(last, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) mix[offset + i * n + j] = last.kernel[i * n + j] * row[i] * column[j];
  }
  return { softmax, segments };
}

/** Write the gradient by the logits to `byLogits[offset...]`, given that by the matrix in `gradient[offset...]`. */
export function sinkhornBackward(
  byLogits: { [index: number]: number },
  gradient: ArrayLike<number>,
  offset: number,
  n: number,
  { softmax, segments }: SinkhornSteps,
): void {
  const byRow = new Float64Array(n);
  const byColumn = new Float64Array(n);
  const byLogs = new Float64Array(n * n);
  let byKernel = new Float64Array(n * n);
  // By the logarithms of the last factors, and by the kernel.
  const last = segments.at(-1)!;
  const [row, column] = lastFactors(last, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const at = i * n + j;
      byKernel[at] = gradient[offset + at] * row[i] * column[j];
      byRow[i] += byKernel[at] * last.kernel[at];
      byColumn[j] += byKernel[at] * last.kernel[at];
    }
  }
  for (let place = segments.length - 1; place >= 0; place--) {
    const { kernel } = segments[place];
    stepsBackward(segments[place], n, place === 0, { byRow, byColumn, byKernel });
    // Absorbed factors cancel in the gradient by logarithms: what a kernel was made of does not matter.
    for (let at = 0; at < n * n; at++) byLogs[at] += kernel[at] * byKernel[at];
    byKernel = new Float64Array(n * n);
  }
  for (let j = 0; j < n; j++) {
    let total = 0;
    for (let i = 0; i < n; i++) total += byLogs[i * n + j];
    for (let i = 0; i < n; i++) byLogits[offset + i * n + j] = byLogs[i * n + j] - softmax[i * n + j] * total;
  }
}

interface Carried {
  readonly byRow: Float64Array;
  readonly byColumn: Float64Array;
  readonly byKernel: Float64Array;
}

/** Go back over a segment's steps: what each factor gets goes to the kernel and to the factor that it was made of. */
function stepsBackward({ kernel, rows, columns, count }: Segment, n: number, first: boolean, by: Carried): void {
  const { byRow, byColumn, byKernel } = by;
  const part = new Float64Array(n);
  for (let step = count - 1, at = step * n; step >= 0; step--, at -= n) {
    for (let i = 0; i < n; i++) part[i] = byRow[i] * rows[at + n + i];
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        byKernel[i * n + j] -= part[i] * columns[at + j];
        byColumn[j] -= columns[at + j] * kernel[i * n + j] * part[i];
      }
    }
    if (first && step === 0) return;
    for (let j = 0; j < n; j++) part[j] = byColumn[j] * columns[at + j];
    for (let i = 0; i < n; i++) {
      let total = 0;
      for (let j = 0; j < n; j++) {
        byKernel[i * n + j] -= rows[at + i] * part[j];
        total += kernel[i * n + j] * part[j];
      }
      byRow[i] = -rows[at + i] * total;
    }
    byColumn.fill(0);
  }
}
