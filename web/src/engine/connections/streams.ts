/** Connections whose state is n streams: what they share, whichever way their coefficients are made. */

import { dot, type Floats, type Matrix, zeros } from "../matrix";
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
}

/** Makes the coefficients of each row from its streams, `rows x n dim`. */
export interface CoefficientMaker {
  readonly parameters: readonly Parameter[];
  coefficients(state: Matrix): Coefficients;
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
  private back: { byState: Matrix; byWrite: Floats; byMix: Floats | null } | null = null;

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
    const x = zeros(state.rows, dim, state.data);
    for (let r = 0; r < state.rows; r++) {
      for (let d = 0; d < dim; d++) {
        let total = 0;
        for (let j = 0; j < n; j++) total += coefficients.read[r * n + j] * state.data[(r * n + j) * dim + d];
        x.data[r * dim + d] = total;
      }
    }
    return x;
  }

  write([state]: State, out: Matrix): State {
    const { dim, streams: n } = this;
    const kept = saved(this.kept);
    kept.out = out;
    const { mix, write } = kept.coefficients;
    const next = zeros(state.rows, n * dim, state.data);
    for (let r = 0; r < state.rows; r++) {
      for (let i = 0; i < n; i++) {
        const weight = write[r * n + i];
        const to = (r * n + i) * dim;
        for (let d = 0; d < dim; d++) {
          let total = weight * out.data[r * dim + d];
          if (mix) {
            const [row, first] = [(r * n + i) * n, r * n * dim + d];
            for (let j = 0; j < n; j++) total += mix[row + j] * state.data[first + j * dim];
          } else {
            total += state.data[to + d];
          }
          next.data[to + d] = total;
        }
      }
    }
    return [next];
  }

  writeBackward([gradient]: State): Matrix {
    const { dim, streams: n } = this;
    const { state, out, coefficients } = saved(this.kept);
    const { mix, write } = coefficients;
    const [g, x, f] = [gradient.data, state.data, saved(out).data];
    const byOut = zeros(state.rows, dim, x);
    const byState = zeros(state.rows, n * dim, x);
    const byWrite = new Float64Array(state.rows * n);
    const byMix = mix ? new Float64Array(state.rows * n * n) : null;
    for (let r = 0; r < state.rows; r++) {
      const start = r * n * dim;
      for (let d = 0; d < dim; d++) {
        let total = 0;
        for (let i = 0; i < n; i++) {
          const by = g[start + i * dim + d];
          total += write[r * n + i] * by;
          byWrite[r * n + i] += by * f[r * dim + d];
        }
        byOut.data[r * dim + d] = total;
      }
      if (mix && byMix) mixBackward(mix, byMix, g, x, byState.data, [r, n, dim]);
    }
    if (!mix) byState.data.set(g);
    this.back = { byState, byWrite, byMix };
    return byOut;
  }

  readBackward(gradient: Matrix): State {
    const { dim, streams: n } = this;
    const { state, coefficients } = saved(this.kept);
    const { byState, byWrite, byMix } = saved(this.back);
    const byRead = new Float64Array(state.rows * n);
    for (let r = 0; r < state.rows; r++) {
      for (let j = 0; j < n; j++) {
        const from = (r * n + j) * dim;
        const weight = coefficients.read[r * n + j];
        let along = 0;
        for (let d = 0; d < dim; d++) {
          const by = gradient.data[r * dim + d];
          along += by * state.data[from + d];
          byState.data[from + d] += weight * by;
        }
        byRead[r * n + j] = along;
      }
    }
    this.maker.coefficientsBackward({ read: byRead, mix: byMix, write: byWrite }, byState);
    return [byState];
  }

  mixing(): LayerMix | null {
    const { mix } = saved(this.kept).coefficients;
    return mix && { mix, streams: this.streams };
  }
}

/** For one row: `byMix_ij = g_i . x_j` and `byState_j = sum_i mix_ij g_i`. */
function mixBackward(
  mix: Floats,
  byMix: Floats,
  g: Floats,
  x: Floats,
  byState: Floats,
  [r, n, dim]: readonly [number, number, number],
): void {
  const start = r * n * dim;
  for (let j = 0; j < n; j++) {
    for (let i = 0; i < n; i++) {
      byMix[(r * n + i) * n + j] = dot(g, start + i * dim, x, start + j * dim, dim);
    }
    for (let d = 0; d < dim; d++) {
      let total = 0;
      for (let i = 0; i < n; i++) total += mix[(r * n + i) * n + j] * g[start + i * dim + d];
      byState[start + j * dim + d] = total;
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
      const y = zeros(state.rows, dim, state.data);
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
  const state = zeros(x.rows, streams * x.cols, x.data);
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
