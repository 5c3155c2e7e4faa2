/** Attention over depth: a layer reads a weighted mean of what all layers before it returned. */

import {
  addTo,
  allZero,
  dot,
  type Floats,
  type Matrix,
  type Precision,
  rowSquares,
  SAFE_SQUARES,
  squares,
  sum,
  zeros,
} from "../matrix";
import { type Parameter, parameter, saved } from "../module";
import type { Connection, Ends, State } from "./connection";

const EPSILON = 1e-6;

export type AttentionScale = "mean" | "sum";

/** `1/rms` of each row, made once for a source: every later layer asks for it. */
const inverses = new WeakMap<Matrix, Float64Array>();

function inverseRms(x: Matrix): Float64Array {
  const known = inverses.get(x);
  if (known) return known;
  const inverse = rowSquares(x).map((square) => 1 / Math.sqrt(square / x.cols + EPSILON));
  inverses.set(x, inverse);
  return inverse;
}

/** What sources come to up to one of them: their sum, and that of their squares. */
interface Sum {
  readonly total: Float64Array;
  readonly squares: number;
}

const sums = new WeakMap<Matrix, Sum>();

/** Made of the sum up to the source before, which the layer before has asked for, or of all. */
function sumOf(sources: State): Sum {
  const last = sources[sources.length - 1];
  const known = sums.get(last);
  if (known) return known;
  const before = sources.length > 1 ? sums.get(sources[sources.length - 2]) : undefined;
  const total = before ? before.total.slice() : new Float64Array(last.data.length);
  let found = before?.squares ?? 0;
  for (const { data } of before ? [last] : sources) {
    found += squares(data);
    addTo(total, data);
  }
  const sum = { total, squares: found };
  sums.set(last, sum);
  return sum;
}

/** `y = s sum_i a_i v_i`, `a = softmax_i(query . v_i / rms(v_i))`, with s = 1, or the number of sources. */
class DepthAttention {
  readonly parameters: readonly Parameter[];
  private readonly query: Parameter;
  private kept: { sources: State; weights: Float64Array; products: Float64Array } | null = null;
  /** Sources of which all have the same weight, whatever they are: a query of zero, as at the start, asks for none. */
  private even: State | null = null;

  constructor(
    name: string,
    private readonly dim: number,
    precision: Precision,
    private readonly scale: AttentionScale,
  ) {
    this.query = parameter(`${name}.query`, [dim], precision);
    this.parameters = [this.query];
  }

  forward(sources: State): Matrix {
    const { query, dim } = this;
    const even = !query.requiresGradient && allZero(query.value) && sumOf(sources).squares < Number.POSITIVE_INFINITY;
    this.even = even ? sources : null;
    if (!even) return this.attend(sources);
    const y = zeros(sources[0].rows, dim, sources[0].data);
    const { total } = sumOf(sources);
    const share = this.factor(sources.length) / sources.length;
    for (let i = 0; i < total.length; i++) y.data[i] = share * total[i];
    return y;
  }

  private attend(sources: State): Matrix {
    const { dim } = this;
    const [first] = sources;
    const count = sources.length;
    const products = new Float64Array(count * first.rows);
    const weights = new Float64Array(count * first.rows);
    const q = this.query.value;
    sources.forEach((source, place) => {
      const v = source.data;
      const inverse = inverseRms(source);
      for (let r = 0; r < first.rows; r++) {
        const along = dot(q, 0, v, r * dim, dim);
        products[place * first.rows + r] = along;
        weights[place * first.rows + r] = along * inverse[r];
      }
    });
    softmaxOverDepth(weights, count, first.rows);
    const total = new Float64Array(first.rows * dim);
    const factor = this.factor(count);
    sources.forEach(({ data: v }, place) => {
      for (let r = 0; r < first.rows; r++) {
        const weight = factor * weights[place * first.rows + r];
        for (let i = r * dim; i < (r + 1) * dim; i++) total[i] += weight * v[i];
      }
    });
    this.kept = { sources, weights, products };
    const y = zeros(first.rows, dim, first.data);
    y.data.set(total);
    return y;
  }

  /** Add the gradient by each source to `bySources`. */
  backward(gradient: Matrix, bySources: State): void {
    const { even } = this;
    if (even && squares(gradient.data) * sumOf(even).squares < SAFE_SQUARES) {
      const share = this.factor(even.length) / even.length;
      for (let place = 0; place < even.length; place++) addScaled(bySources[place].data, share, gradient.data);
      return;
    }
    if (even) this.attend(even);
    const { dim } = this;
    const { sources, weights, products } = saved(this.kept);
    const { rows } = gradient;
    const [g, q] = [gradient.data, this.query.value];
    const factor = this.factor(sources.length);
    const byWeight = new Float64Array(weights.length);
    const mean = new Float64Array(rows);
    sources.forEach(({ data: v }, place) => {
      for (let r = 0; r < rows; r++) {
        const at = place * rows + r;
        byWeight[at] = factor * dot(g, r * dim, v, r * dim, dim);
        mean[r] += weights[at] * byWeight[at];
      }
    });
    const byQuery = new Float64Array(dim);
    const learned = this.query.requiresGradient;
    sources.forEach((source, place) => {
      const v = source.data;
      const inverse = inverseRms(source);
      const total = bySources[place].data;
      for (let r = 0; r < rows; r++) {
        const at = place * rows + r;
        const byProduct = weights[at] * (byWeight[at] - mean[r]) * inverse[r];
        const back = (byProduct * products[at] * inverse[r] ** 2) / dim;
        const share = factor * weights[at];
        const start = r * dim;
        if (learned) for (let d = 0; d < dim; d++) byQuery[d] += byProduct * v[start + d];
        for (let d = 0, i = start; d < dim; d++, i++) {
          total[i] += share * g[i] + byProduct * q[d] - back * v[i];
        }
      }
    });
    if (learned) addTo(this.query.gradient, byQuery);
  }

  private factor(count: number): number {
    return this.scale === "sum" ? count : 1;
  }
}

function addScaled(total: Floats, factor: number, x: Floats): void {
  for (let i = 0; i < x.length; i++) total[i] += factor * x[i];
}

function softmaxOverDepth(scores: Float64Array, count: number, rows: number): void {
  for (let r = 0; r < rows; r++) {
    let largest = Number.NEGATIVE_INFINITY;
    for (let at = r; at < scores.length; at += rows) largest = Math.max(largest, scores[at]);
    let sum = 0;
    for (let place = 0; place < count; place++) {
      const at = place * rows + r;
      scores[at] = Math.exp(scores[at] - largest);
      sum += scores[at];
    }
    for (let at = r; at < scores.length; at += rows) scores[at] /= sum;
  }
}

/** The input is the first source; a mean with a query of its own follows the last layer. */
export function attentionEnds(dim: number, precision: Precision, scale: AttentionScale): Ends {
  const attention = new DepthAttention("output", dim, precision, scale);
  let count = 0;
  return {
    parameters: attention.parameters,
    begin: (x) => [x],
    beginBackward: ([gradient]) => gradient,
    end(state) {
      count = state.length;
      return attention.forward(state);
    },
    endBackward(gradient) {
      const bySources = Array.from({ length: count }, () => zeros(gradient.rows, dim, gradient.data));
      attention.backward(gradient, bySources);
      return bySources;
    },
  };
}

/** `u_l = sum_i a_i v_i`, `v_{l+1} = f_l(u_l)`; the outputs of `blockSize` layers are summed to one source. */
export class AttentionResidual implements Connection {
  readonly parameters: readonly Parameter[];
  private readonly attention: DepthAttention | null;
  private readonly opensBlock: boolean;
  private gradient: State | null = null;

  constructor(
    name: string,
    dim: number,
    layer: number,
    precision: Precision,
    { blockSize = 1, scale = "mean" as AttentionScale } = {},
  ) {
    this.opensBlock = layer % blockSize === 0;
    // The first layer has one source to choose from.
    this.attention = layer ? new DepthAttention(`${name}.attention`, dim, precision, scale) : null;
    this.parameters = this.attention?.parameters ?? [];
  }

  read(state: State): Matrix {
    return this.attention ? this.attention.forward(state) : state[0];
  }

  write(state: State, out: Matrix): State {
    if (this.opensBlock) return [...state, out];
    return [...state.slice(0, -1), sum(state[state.length - 1], out)];
  }

  writeBackward(gradient: State): Matrix {
    this.gradient = this.opensBlock ? gradient.slice(0, -1) : gradient;
    return gradient[gradient.length - 1];
  }

  readBackward(gradient: Matrix): State {
    const bySources = saved(this.gradient);
    if (this.attention) {
      this.attention.backward(gradient, bySources);
    } else {
      addTo(bySources[0].data, gradient.data);
    }
    return bySources;
  }
}
