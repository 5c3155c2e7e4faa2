/** Connections whose state is n streams: what they share, whichever way their coefficients are made. */

import * as kernels from "../kernels";
import { dot, type Floats, type Matrix, SAFE_SQUARES, squares, unwritten } from "../matrix";
import type { LayerMix } from "../mixing";
import type { Parameter } from "../module";
import { saved } from "../module";
import type { Connection, Ends, State } from "./connection";

/** Most of what is read where a stream is favoured, as in levada. */
const FAVOURED = 0.7;

/** By row of the batch: weights that read (n), that mix (n x n, or none for the identity) and that write (n). */
export interface Coefficients {
  readonly read: Floats;
  readonly mix: Floats | null;
  readonly write: Floats;
  /**
   * Whether they are the same for all rows whatever the streams are, and nothing is learned by them: then no gradient
   * goes by way of them. So it is where weights that project are zero, as hyper-connections begin.
   */
  readonly fixed?: boolean;
}

/** Makes the coefficients of each row from its streams, `rows x n dim`. */
export interface CoefficientMaker {
  readonly parameters: readonly Parameter[];
  /** @param whole make them as if they were not fixed, for a gradient that zero weights do not stop. */
  coefficients(state: Matrix, whole?: boolean): Coefficients;
  /** Take the gradients by the coefficients; add what goes by way of them to the gradient by the streams. */
  coefficientsBackward(gradients: Coefficients, byState: Matrix): void;
}

/** Weights that sum to 1, most of it for stream `layer % n`: read with them, equal streams part. */
export function favoured(streams: number, layer: number): Float64Array {
  const weights = new Float64Array(streams).fill((1 - FAVOURED) / (streams - 1));
  weights[layer % streams] = FAVOURED;
  return weights;
}

export const logit = (p: number): number => Math.log(p / (1 - p));

/** `x'_i = sum_j mix_ij x_j + write_i f(sum_j read_j x_j)`. */
export class Streams implements Connection {
  readonly parameters: readonly Parameter[];
  private kept: { state: Matrix; out: Matrix | null; coefficients: Coefficients } | null = null;
  /** Of the way back: by the streams so far, and by the coefficients; null where nothing goes by way of these. */
  private back: { byState: Matrix; byWrite: Floats; byMix: Floats | null } | { byState: Matrix; byWrite: null } | null =
    null;

  constructor(
    private readonly dim: number,
    private readonly streams: number,
    private readonly maker: CoefficientMaker,
  ) {
    this.parameters = maker.parameters;
  }

  read([state]: State): Matrix {
    const { dim, streams: n } = this;
    const coefficients = this.maker.coefficients(state);
    this.kept = { state, out: null, coefficients };
    const x = unwritten(state.rows, dim, state.data);
    const sizes = { rows: state.rows, n, dim };
    if (kernels.weighed("gather", x.data, coefficients.read, state.data, sizes)) return x;
    for (let r = 0; r < state.rows; r++) {
      combine(x.data, r * dim, coefficients.read, r * n, 1, state.data, r * n * dim, { n, dim });
    }
    return x;
  }

  write([state]: State, out: Matrix): State {
    const { dim, streams: n } = this;
    const kept = saved(this.kept);
    kept.out = out;
    const { mix, write } = kept.coefficients;
    const next = unwritten(state.rows, n * dim, state.data);
    const [x, f, to] = [state.data, out.data, next.data];
    const sizes = { rows: state.rows, n, dim };
    if (!mix) {
      to.set(x);
      addSpread(to, write, f, sizes);
    } else if (!kernels.mix(to, mix, x, write, f, sizes)) {
      for (let r = 0; r < state.rows; r++) {
        for (let i = 0; i < n; i++) {
          const at = r * n + i;
          mixed(to, at * dim, mix, at * n, x, r * n * dim, write[at], f, r * dim, sizes);
        }
      }
    }
    return [next];
  }

  writeBackward([gradient]: State): Matrix {
    const { dim, streams: n } = this;
    const kept = saved(this.kept);
    const { state, out } = kept;
    const [g, x] = [gradient.data, state.data];
    let { fixed } = kept.coefficients;
    if (fixed && !(squares(g) * squares(x) < SAFE_SQUARES)) {
      kept.coefficients = this.maker.coefficients(state, true);
      fixed = false;
    }
    const { mix, write } = kept.coefficients;
    const byOut = unwritten(state.rows, dim, x);
    const byState = unwritten(state.rows, n * dim, x);
    this.mixBack(byOut.data, byState.data, write, mix, g);
    this.back = fixed
      ? { byState, byWrite: null }
      : {
          byState,
          byWrite: this.along(g, n, saved(out).data, 1),
          byMix: mix && this.along(g, n, x, n),
        };
    return byOut;
  }

  readBackward(gradient: Matrix): State {
    const { dim, streams: n } = this;
    const { state, coefficients } = saved(this.kept);
    const back = saved(this.back);
    const { read } = coefficients;
    addSpread(back.byState.data, read, gradient.data, { rows: state.rows, n, dim });
    if (back.byWrite) {
      const byRead = this.along(gradient.data, 1, state.data, n);
      this.maker.coefficientsBackward({ read: byRead, mix: back.byMix, write: back.byWrite }, back.byState);
    }
    return [back.byState];
  }

  /** By what the branch returned, and by the streams as far as these went on. */
  private mixBack(byOut: Floats, byState: Floats, write: Floats, mix: Floats | null, g: Floats): void {
    const { dim, streams: n } = this;
    const sizes = { rows: byOut.length / dim, n, dim };
    if (!kernels.weighed("gather", byOut, write, g, sizes)) {
      for (let r = 0; r < sizes.rows; r++) combine(byOut, r * dim, write, r * n, 1, g, r * n * dim, sizes);
    }
    if (!mix) {
      byState.set(g);
    } else if (!kernels.weighed("mixBack", byState, mix, g, sizes)) {
      for (let r = 0; r < sizes.rows; r++) {
        const start = r * n * dim;
        for (let j = 0; j < n; j++) combine(byState, start + j * dim, mix, r * n * n + j, n, g, start, sizes);
      }
    }
  }

  mixing(): LayerMix | null {
    const { mix, fixed = false } = saved(this.kept).coefficients;
    return mix && { mix, streams: this.streams, same: fixed };
  }

  /** Of each row, the products of each of its `nx` streams of x with each of its `ny` of y. */
  private along(x: Floats, nx: number, y: Floats, ny: number): Floats {
    const { dim } = this;
    const rows = x.length / (nx * dim);
    const made = kernels.along(x, nx, y, ny, { rows, dim });
    if (made) return made;
    const found = new Float64Array(rows * nx * ny);
    for (let r = 0, at = 0; r < rows; r++) {
      for (let i = 0; i < nx; i++) {
        for (let j = 0; j < ny; j++, at++) found[at] = dot(x, (r * nx + i) * dim, y, (r * ny + j) * dim, dim);
      }
    }
    return found;
  }
}

/** `to = sum_j weights_j x_j` over n streams; four at a time, since they are four if nobody chose otherwise. */
function combine(
  to: Floats,
  toAt: number,
  weights: Floats,
  first: number,
  step: number,
  x: Floats,
  from: number,
  { n, dim }: { readonly n: number; readonly dim: number },
): void {
  if (n === 4) {
    const [w0, w1, w2, w3] = [
      weights[first],
      weights[first + step],
      weights[first + 2 * step],
      weights[first + 3 * step],
    ];
    for (let d = 0, at = from; d < dim; d++, at++) {
      to[toAt + d] = w0 * x[at] + w1 * x[at + dim] + w2 * x[at + 2 * dim] + w3 * x[at + 3 * dim];
    }
    return;
  }
  for (let d = 0; d < dim; d++) {
    let total = weights[first] * x[from + d];
    for (let j = 1; j < n; j++) total += weights[first + j * step] * x[from + j * dim + d];
    to[toAt + d] = total;
  }
}

/** `to = sum_j mix_j x_j + weight f`: the same with one more term, rounded once. */
function mixed(
  to: Floats,
  toAt: number,
  mix: Floats,
  first: number,
  x: Floats,
  from: number,
  weight: number,
  f: Floats,
  fAt: number,
  { n, dim }: { readonly n: number; readonly dim: number },
): void {
  if (n === 4) {
    const [w0, w1, w2, w3] = [mix[first], mix[first + 1], mix[first + 2], mix[first + 3]];
    for (let d = 0, at = from; d < dim; d++, at++) {
      to[toAt + d] =
        weight * f[fAt + d] + (w0 * x[at] + w1 * x[at + dim] + w2 * x[at + 2 * dim] + w3 * x[at + 3 * dim]);
    }
    return;
  }
  for (let d = 0; d < dim; d++) {
    let total = mix[first] * x[from + d];
    for (let j = 1; j < n; j++) total += mix[first + j] * x[from + j * dim + d];
    to[toAt + d] = weight * f[fAt + d] + total;
  }
}

/** `to_rj += weights_rj x_r`. */
function addSpread(to: Floats, weights: Floats, x: Floats, sizes: kernels.Sizes): void {
  if (kernels.weighed("spread", to, weights, x, sizes)) return;
  const { rows, n, dim } = sizes;
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < n; j++) {
      const from = (r * n + j) * dim;
      const weight = weights[r * n + j];
      for (let d = 0; d < dim; d++) to[from + d] += weight * x[r * dim + d];
    }
  }
}

/** Puts the streams together at the end. */
export interface Head {
  readonly parameters: readonly Parameter[];
  forward(state: Matrix): Matrix;
  backward(gradient: Matrix): Matrix;
}

/** The sum of the streams times a factor: 1, or 1/n for their mean. */
export function summingHead(streams: number, dim: number, factor: number): Head {
  return {
    parameters: [],
    forward(state) {
      const y = unwritten(state.rows, dim, state.data);
      for (let r = 0; r < state.rows; r++) {
        for (let d = 0; d < dim; d++) {
          let total = 0;
          for (let j = 0; j < streams; j++) total += state.data[(r * streams + j) * dim + d];
          y.data[r * dim + d] = factor * total;
        }
      }
      return y;
    },
    backward: (gradient) => copies(gradient, streams, factor),
  };
}

/** Each row n times side by side, times a factor. */
function copies(x: Matrix, streams: number, factor: number): Matrix {
  const state = unwritten(x.rows, streams * x.cols, x.data);
  for (let r = 0; r < x.rows; r++) {
    for (let d = 0; d < x.cols; d++) {
      const value = factor * x.data[r * x.cols + d];
      for (let j = 0; j < streams; j++) state.data[(r * streams + j) * x.cols + d] = value;
    }
  }
  return state;
}

/** The input in every stream at first, a head at the end. */
export function streamEnds(streams: number, dim: number, head: Head): Ends {
  const sums = summingHead(streams, dim, 1);
  return {
    parameters: head.parameters,
    begin: (x) => [copies(x, streams, 1)],
    beginBackward: ([gradient]) => sums.forward(gradient),
    end: ([state]) => head.forward(state),
    endBackward: (gradient) => [head.backward(gradient)],
  };
}
