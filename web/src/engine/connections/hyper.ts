/** Hyper-connections: coefficients are learned numbers, plus what each stream says about its own part in them. */

import { allZero, type Matrix, type Precision, plain, product, reshaped, squares, transposed, zeros } from "../matrix";
import { type Module, type Parameter, parameter, saved } from "../module";
import { normalisation } from "../normalise";
import type { CoefficientMaker, Coefficients } from "./streams";

/**
 * `read_j = static_read_j + s tanh(norm(x_j) p)`, `mix_ij = static_mix_ij + s tanh(norm(x_j) q_i)` and
 * `write_i = static_write_i + t tanh(norm(x_i) r)`; `p`, the `q_i` and `r` are the rows of `projection`.
 */
export class LearnedCoefficients implements CoefficientMaker {
  readonly parameters: readonly Parameter[];
  private readonly staticRead: Parameter;
  private readonly staticMix: Parameter;
  private readonly staticWrite: Parameter;
  private readonly dynamic: Dynamic | null;

  constructor(
    name: string,
    dim: number,
    private readonly streams: number,
    layer: number,
    precision: Precision,
    { dynamic = true, norm = "layer" as "layer" | "rms" } = {},
  ) {
    const n = streams;
    const own = Float64Array.from({ length: n }, (_, j) => (j === layer % n ? 1 : 0));
    const eye = Float64Array.from({ length: n * n }, (_, at) => (at % (n + 1) === 0 ? 1 : 0));
    this.staticRead = parameter(`${name}.static_read`, [n], precision, own);
    // Of two dimensions, and yet not decayed: it is what the layer starts from.
    this.staticMix = parameter(`${name}.static_mix`, [n, n], precision, eye, false);
    this.staticWrite = parameter(`${name}.static_write`, [n], precision, 1);
    this.dynamic = dynamic ? new Dynamic(name, dim, n, precision, norm) : null;
    const learned = [this.staticRead, this.staticMix, this.staticWrite];
    this.parameters = [...learned, ...(this.dynamic?.parameters ?? [])];
  }

  coefficients(state: Matrix, whole = false): Coefficients {
    const n = this.streams;
    const { rows } = state;
    const silent = this.dynamic === null || (!whole && this.dynamic.silent(state));
    const fixed = silent && !this.parameters.some(({ requiresGradient }) => requiresGradient);
    const read = zeros(rows, n, state.data).data;
    const mix = zeros(rows, n * n, state.data).data;
    const write = zeros(rows, n, state.data).data;
    for (let at = 0; at < read.length; at++) {
      read[at] = this.staticRead.value[at % n];
      write[at] = this.staticWrite.value[at % n];
    }
    for (let at = 0; at < mix.length; at++) mix[at] = this.staticMix.value[at % (n * n)];
    const coefficients = { read, mix, write, fixed };
    if (!fixed) this.dynamic?.addTo(coefficients, state);
    return coefficients;
  }

  coefficientsBackward(gradients: Coefficients, byState: Matrix): void {
    for (const [own, by] of [
      [this.staticRead, gradients.read],
      [this.staticMix, gradients.mix!],
      [this.staticWrite, gradients.write],
    ] as const) {
      if (!own.requiresGradient) continue;
      const { gradient } = own;
      for (let at = 0; at < by.length; at += gradient.length) {
        for (let k = 0; k < gradient.length; k++) gradient[k] += by[at + k];
      }
    }
    this.dynamic?.backward(gradients, byState);
  }
}

/** What each stream of a token says: `tanh(projection norm(x_j))`, n + 2 numbers in the order read, mix, write. */
class Dynamic {
  readonly parameters: readonly Parameter[];
  private readonly norm: Module;
  private readonly projection: Parameter;
  private readonly mixScale: Parameter;
  private readonly writeScale: Parameter;
  private kept: { features: Matrix; said: Matrix } | null = null;

  constructor(
    name: string,
    private readonly dim: number,
    private readonly streams: number,
    precision: Precision,
    norm: "layer" | "rms",
  ) {
    this.norm = normalisation(norm, `${name}.norm`, dim, precision);
    this.projection = parameter(`${name}.projection`, [streams + 2, dim], precision);
    this.mixScale = parameter(`${name}.mix_scale`, [1], precision, 0.01);
    this.writeScale = parameter(`${name}.write_scale`, [1], precision, 0.01);
    this.parameters = [...this.norm.parameters, this.projection, this.mixScale, this.writeScale];
  }

  /** Whether it adds nothing: where its weights are zero, as at the start, and what they project is finite. */
  silent(state: Matrix): boolean {
    return allZero(this.projection.value) && squares(state.data) < Number.POSITIVE_INFINITY;
  }

  addTo({ read, mix, write }: Coefficients, state: Matrix): void {
    const { dim, streams: n } = this;
    const features = this.norm.forward(reshaped(state, state.rows * n, dim));
    const said = zeros(features.rows, n + 2, state.data);
    const sizes = [features.rows, n + 2, dim] as const;
    product(said.data, plain(features.data, dim), transposed(this.projection.value, dim), sizes);
    for (let i = 0; i < said.data.length; i++) said.data[i] = Math.tanh(said.data[i]);
    this.kept = { features, said };
    const [s, t] = [this.mixScale.value[0], this.writeScale.value[0]];
    for (let at = 0; at < said.rows; at++) {
      const [r, j] = [Math.floor(at / n), at % n];
      const own = at * (n + 2);
      read[at] += s * said.data[own];
      for (let i = 0; i < n; i++) mix![(r * n + i) * n + j] += s * said.data[own + 1 + i];
      write[at] += t * said.data[own + n + 1];
    }
  }

  backward({ read, mix, write }: Coefficients, byState: Matrix): void {
    const { dim, streams: n } = this;
    const { features, said } = saved(this.kept);
    const [s, t] = [this.mixScale.value[0], this.writeScale.value[0]];
    const bySaid = zeros(said.rows, n + 2, said.data);
    let [byMixScale, byWriteScale] = [0, 0];
    for (let at = 0; at < said.rows; at++) {
      const [r, j] = [Math.floor(at / n), at % n];
      const own = at * (n + 2);
      for (let k = 0; k < n + 2; k++) {
        const value = said.data[own + k];
        const slope = 1 - value * value;
        if (k === n + 1) {
          byWriteScale += write[at] * value;
          bySaid.data[own + k] = t * write[at] * slope;
        } else {
          const by = k === 0 ? read[at] : mix![(r * n + k - 1) * n + j];
          byMixScale += by * value;
          bySaid.data[own + k] = s * by * slope;
        }
      }
    }
    if (this.mixScale.requiresGradient) this.mixScale.gradient[0] += byMixScale;
    if (this.writeScale.requiresGradient) this.writeScale.gradient[0] += byWriteScale;
    if (this.projection.requiresGradient) {
      const inner = [n + 2, dim, said.rows] as const;
      product(this.projection.gradient, transposed(bySaid.data, n + 2), plain(features.data, dim), inner, true);
    }
    const byFeatures = zeros(said.rows, dim, said.data);
    const outer = [said.rows, dim, n + 2] as const;
    product(byFeatures.data, plain(bySaid.data, n + 2), plain(this.projection.value, dim), outer);
    const through = this.norm.backward(byFeatures).data;
    for (let i = 0; i < through.length; i++) byState.data[i] += through[i];
  }
}
