/** Coefficients that are projected from all streams of a token together: mHC, identity hyper-connections, heads. */

import { sigmoid, sigmoidAll } from "../activation";
import {
  addScaledRows,
  addTo,
  allZero,
  type Floats,
  type Matrix,
  type Precision,
  plain,
  product,
  rowSquares,
  squares,
  transposed,
  unwritten,
  zeros,
} from "../matrix";
import { addColumnSums, type Parameter, parameter, saved } from "../module";
import { Random } from "../random";
import { type SinkhornSteps, sinkhorn, sinkhornBackward } from "./sinkhorn";
import { type CoefficientMaker, type Coefficients, favoured, type Head, logit } from "./streams";

const OFF_DIAGONAL = -6; // levada's choice for the logits of a mixing matrix near the identity

/** `scale (projection vec(x)) / rms(vec(x)) + bias`, with a scale for each group of logits. */
class Projection {
  readonly parameters: readonly Parameter[];
  readonly projection: Parameter;
  readonly bias: Parameter;
  readonly scale: Parameter;
  private readonly group: readonly number[];
  private kept: { state: Matrix; inverse: Float64Array; logits: Matrix } | null = null;

  constructor(
    name: string,
    private readonly features: number,
    sizes: readonly number[],
    precision: Precision,
    private readonly epsilon: number,
    scale: number,
  ) {
    this.group = sizes.flatMap((size, place) => Array<number>(size).fill(place));
    this.projection = parameter(`${name}.projection`, [this.group.length, features], precision);
    this.bias = parameter(`${name}.bias`, [this.group.length], precision);
    this.scale = parameter(`${name}.scale`, [sizes.length], precision, scale);
    this.parameters = [this.projection, this.bias, this.scale];
  }

  /**
   * Whether it gives its bias whatever the streams are, and nothing is learned by it: its weights are zero, as at the
   * start of mHC, and what they project is finite.
   */
  fixed(state: Matrix): boolean {
    const learned = this.parameters.some(({ requiresGradient }) => requiresGradient);
    return !learned && allZero(this.projection.value) && squares(state.data) < Number.POSITIVE_INFINITY;
  }

  forward(state: Matrix): Matrix {
    const { features, group } = this;
    const count = group.length;
    const logits = unwritten(state.rows, count, state.data);
    const inverse = rowSquares(state);
    const sizes = [state.rows, count, features] as const;
    product(logits.data, plain(state.data, features), transposed(this.projection.value, features), sizes);
    const given = unwritten(state.rows, count, state.data);
    for (let r = 0; r < state.rows; r++) {
      inverse[r] = 1 / Math.sqrt(inverse[r] / features + this.epsilon);
      for (let k = 0; k < count; k++) {
        const at = r * count + k;
        logits.data[at] *= inverse[r];
        given.data[at] = this.scale.value[group[k]] * logits.data[at] + this.bias.value[k];
      }
    }
    this.kept = { state, inverse, logits };
    return given;
  }

  /** Add the gradient by the streams to `byState`. */
  backward(gradient: Matrix, byState: Matrix): void {
    const { features, group } = this;
    const { state, inverse, logits } = saved(this.kept);
    const count = group.length;
    if (this.bias.requiresGradient) addColumnSums(this.bias.gradient, gradient);
    const byScale = new Float64Array(this.scale.value.length);
    const byProduct = unwritten(state.rows, count, state.data);
    const back = new Float64Array(state.rows);
    for (let r = 0; r < state.rows; r++) {
      let along = 0;
      for (let k = 0; k < count; k++) {
        const at = r * count + k;
        byScale[group[k]] += gradient.data[at] * logits.data[at];
        const byLogit = gradient.data[at] * this.scale.value[group[k]];
        along += byLogit * logits.data[at];
        byProduct.data[at] = byLogit * inverse[r];
      }
      back[r] = -(along * inverse[r] ** 2) / features;
    }
    addScaledRows(byState.data, back, state.data);
    if (this.scale.requiresGradient) addTo(this.scale.gradient, byScale);
    if (this.projection.requiresGradient) {
      const inner = [count, features, state.rows] as const;
      product(this.projection.gradient, transposed(byProduct.data, count), plain(state.data, features), inner, true);
    }
    const outer = [state.rows, features, count] as const;
    product(byState.data, plain(byProduct.data, count), plain(this.projection.value, features), outer, true);
  }
}

/** `read = sigmoid(a)`, `write = 2 sigmoid(b)` and `mix = sinkhorn(c)`: the paper's form of mHC. */
export class ManifoldCoefficients implements CoefficientMaker {
  readonly parameters: readonly Parameter[];
  private readonly projection: Projection;
  private readonly iterations: number;
  private kept: { read: Floats; write: Floats; steps: SinkhornSteps } | null = null;

  constructor(
    name: string,
    dim: number,
    private readonly streams: number,
    layer: number,
    precision: Precision,
    { iterations = 20 } = {},
  ) {
    const n = streams;
    this.iterations = iterations;
    this.projection = new Projection(name, n * dim, [n, n, n * n], precision, 1e-6, 0.01);
    this.projection.bias.value.set(favoured(n, layer).map(logit));
    for (let at = 0; at < n * n; at++) {
      this.projection.bias.value[2 * n + at] = at % (n + 1) === 0 ? 0 : OFF_DIAGONAL;
    }
    this.parameters = this.projection.parameters;
  }

  coefficients(state: Matrix, whole = false): Coefficients {
    if (whole || !this.projection.fixed(state)) return this.made(this.projection.forward(state));
    // The same in every row: made once.
    const { bias } = this.projection;
    const { read, mix, write } = this.made({ data: bias.value, rows: 1, cols: bias.value.length });
    const { rows } = state;
    return { read: repeated(read, rows), mix: repeated(mix, rows), write: repeated(write, rows), fixed: true };
  }

  private made(given: Matrix): Coefficients & { mix: Floats } {
    const n = this.streams;
    const { rows } = given;
    const read = zeros(rows, n, given.data).data;
    const write = zeros(rows, n, given.data).data;
    const mix = zeros(rows, n * n, given.data).data;
    const logits = new Float64Array(rows * n * n);
    for (let r = 0; r < rows; r++) {
      const from = r * given.cols;
      for (let j = 0; j < n; j++) {
        read[r * n + j] = sigmoid(given.data[from + j]);
        write[r * n + j] = 2 * sigmoid(given.data[from + n + j]);
      }
      logits.set(given.data.subarray(from + 2 * n, from + given.cols), r * n * n);
    }
    const steps = sinkhorn(mix, logits, { matrices: rows, n, iterations: this.iterations });
    this.kept = { read, write, steps };
    return { read, mix, write };
  }

  coefficientsBackward(gradients: Coefficients, byState: Matrix): void {
    const n = this.streams;
    const { read, write, steps } = saved(this.kept);
    const gradient = zeros(byState.rows, 2 * n + n * n, byState.data);
    const byLogits = new Float64Array(byState.rows * n * n);
    sinkhornBackward(byLogits, gradients.mix!, steps);
    for (let r = 0; r < byState.rows; r++) {
      const to = r * gradient.cols;
      for (let j = 0; j < n; j++) {
        const [open, half] = [read[r * n + j], write[r * n + j] / 2];
        gradient.data[to + j] = gradients.read[r * n + j] * open * (1 - open);
        gradient.data[to + n + j] = 2 * gradients.write[r * n + j] * half * (1 - half);
      }
      gradient.data.set(byLogits.subarray(r * n * n, (r + 1) * n * n), to + 2 * n);
    }
    this.projection.backward(gradient, byState);
  }
}

/** The same numbers for each of some rows. */
function repeated(row: Floats, rows: number): Floats {
  const { data } = zeros(rows, row.length, row);
  for (let r = 0; r < rows; r++) data.set(row, r * row.length);
  return data;
}

/** The released form of hyper-connections without mixing, where levada says it starts. */
const IDENTITY = { deviation: 0.006, scale: 0.01, epsilon: 1e-6, normEpsilon: 1e-5 };

/** `read = sigmoid(a) + epsilon` and `write = 2 sigmoid(b) + epsilon`; no mixing. */
export class IdentityCoefficients implements CoefficientMaker {
  readonly parameters: readonly Parameter[];
  private readonly projection: Projection;
  private open: Floats | null = null;

  constructor(
    name: string,
    dim: number,
    private readonly streams: number,
    precision: Precision,
    seed: number,
  ) {
    const n = streams;
    this.projection = new Projection(name, n * dim, [n, n], precision, IDENTITY.normEpsilon, IDENTITY.scale);
    new Random(seed, `${name}.projection`).fillNormal(this.projection.projection.value, IDENTITY.deviation);
    this.projection.bias.value.fill(-Math.log(n - 1), 0, n);
    this.parameters = this.projection.parameters;
  }

  coefficients(state: Matrix): Coefficients {
    const n = this.streams;
    const given = this.projection.forward(state);
    const read = zeros(state.rows, n, state.data).data;
    const write = zeros(state.rows, n, state.data).data;
    sigmoidAll(given.data);
    for (let at = 0; at < read.length; at++) {
      const from = Math.floor(at / n) * 2 * n + (at % n);
      read[at] = given.data[from] + IDENTITY.epsilon;
      write[at] = 2 * given.data[from + n] + IDENTITY.epsilon;
    }
    this.open = given.data;
    return { read, mix: null, write };
  }

  coefficientsBackward({ read, write }: Coefficients, byState: Matrix): void {
    const n = this.streams;
    const open = saved(this.open);
    const gradient = zeros(byState.rows, 2 * n, byState.data);
    for (let at = 0; at < open.length; at++) {
      const [r, k] = [Math.floor(at / (2 * n)), at % (2 * n)];
      const by = k < n ? read[r * n + k] : 2 * write[r * n + k - n];
      gradient.data[at] = by * open[at] * (1 - open[at]);
    }
    this.projection.backward(gradient, byState);
  }
}

/** `y = sum_j w_j x_j`, `w = sigmoid(scale (projection vec(x)) / rms(vec(x)) + bias) + epsilon`: a `StreamHead`. */
export class StreamHead implements Head {
  readonly parameters: readonly Parameter[];
  private readonly projection: Projection;
  private kept: { state: Matrix; open: Matrix } | null = null;

  /** It starts near the mean, as after identity hyper-connections. */
  constructor(
    name: string,
    private readonly dim: number,
    private readonly streams: number,
    precision: Precision,
    seed: number,
  ) {
    this.projection = new Projection(name, streams * dim, [streams], precision, IDENTITY.normEpsilon, IDENTITY.scale);
    new Random(seed, `${name}.projection`).fillNormal(this.projection.projection.value, IDENTITY.deviation);
    this.projection.bias.value.fill(-Math.log(streams - 1));
    this.parameters = this.projection.parameters;
  }

  forward(state: Matrix): Matrix {
    const { dim, streams: n } = this;
    const open = this.projection.forward(state);
    sigmoidAll(open.data);
    this.kept = { state, open };
    const y = zeros(state.rows, dim, state.data);
    for (let r = 0; r < state.rows; r++) {
      for (let d = 0; d < dim; d++) {
        let total = 0;
        for (let j = 0; j < n; j++) {
          total += (open.data[r * n + j] + IDENTITY.epsilon) * state.data[(r * n + j) * dim + d];
        }
        y.data[r * dim + d] = total;
      }
    }
    return y;
  }

  backward(gradient: Matrix): Matrix {
    const { dim, streams: n } = this;
    const { state, open } = saved(this.kept);
    const byState = zeros(state.rows, n * dim, state.data);
    const byLogits = zeros(state.rows, n, state.data);
    for (let at = 0; at < open.data.length; at++) {
      const r = Math.floor(at / n);
      const weight = open.data[at] + IDENTITY.epsilon;
      let along = 0;
      for (let d = 0; d < dim; d++) {
        const by = gradient.data[r * dim + d];
        along += by * state.data[at * dim + d];
        byState.data[at * dim + d] = weight * by;
      }
      byLogits.data[at] = along * open.data[at] * (1 - open.data[at]);
    }
    this.projection.backward(byLogits, byState);
    return byState;
  }
}
