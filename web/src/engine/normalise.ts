/** Layer, root-mean-square and batch normalisation. */

import { addTo, type Floats, type Matrix, type Precision, zeros } from "./matrix";
import { addColumnSums, type Module, type Parameter, parameter, saved } from "./module";

export type NormName = "layer" | "rms" | "batch";

/** A feature normalised, before the weights, and what it was divided by. */
interface Kept {
  readonly unit: Matrix;
  readonly inverse: Float64Array;
}

/** `1/sqrt(mean square + epsilon)` of what the epsilon is, in PyTorch, where none is given. */
export function rmsEpsilon(precision: Precision): number {
  return precision === "float32" ? 2 ** -23 : Number.EPSILON;
}

/**
 * `y = weight (x - m)/sqrt(v + epsilon) + bias` over each row: its mean and variance, or 0 and its mean square.
 *
 * The backward pass takes out of `h = weight g` what lies along the normalised row, and along the constant one where a
 * mean was subtracted.
 */
class RowNorm implements Module {
  readonly parameters: readonly Parameter[];
  private readonly weight: Parameter;
  private readonly bias: Parameter | null;
  private kept: Kept | null = null;

  constructor(
    name: string,
    dim: number,
    precision: Precision,
    private readonly centred: boolean,
    private readonly epsilon: number,
  ) {
    this.weight = parameter(`${name}.weight`, [dim], precision, 1);
    this.bias = centred ? parameter(`${name}.bias`, [dim], precision) : null;
    this.parameters = this.bias ? [this.weight, this.bias] : [this.weight];
  }

  forward(x: Matrix): Matrix {
    const { rows, cols, data } = x;
    const unit = zeros(rows, cols, data);
    const y = zeros(rows, cols, data);
    const inverse = new Float64Array(rows);
    const weight = this.weight.value;
    const bias = this.bias?.value;
    const [u, to] = [unit.data, y.data];
    for (let i = 0, start = 0; i < rows; i++, start += cols) {
      let mean = 0;
      if (this.centred) {
        for (let j = 0; j < cols; j++) mean += data[start + j];
        mean /= cols;
      }
      let square = 0;
      for (let j = 0; j < cols; j++) square += (data[start + j] - mean) ** 2;
      inverse[i] = 1 / Math.sqrt(square / cols + this.epsilon);
      for (let j = 0; j < cols; j++) {
        const one = (data[start + j] - mean) * inverse[i];
        u[start + j] = one;
        to[start + j] = weight[j] * one + (bias ? bias[j] : 0);
      }
    }
    this.kept = { unit, inverse };
    return y;
  }

  backward(gradient: Matrix): Matrix {
    const { unit, inverse } = saved(this.kept);
    const { rows, cols } = unit;
    const [g, u, weight] = [gradient.data, unit.data, this.weight.value];
    const byInput = zeros(rows, cols, u);
    const to = byInput.data;
    for (let i = 0, start = 0; i < rows; i++, start += cols) {
      let [mean, along] = [0, 0];
      for (let j = 0; j < cols; j++) {
        const at = start + j;
        const h = weight[j] * g[at];
        mean += h;
        along += h * u[at];
      }
      mean = this.centred ? mean / cols : 0;
      along /= cols;
      for (let j = 0; j < cols; j++) {
        const at = start + j;
        to[at] = inverse[i] * (weight[j] * g[at] - mean - along * u[at]);
      }
    }
    if (this.weight.requiresGradient) this.addGradients(g, u);
    if (this.bias?.requiresGradient) addColumnSums(this.bias.gradient, gradient);
    return byInput;
  }

  private addGradients(g: Floats, u: Floats): void {
    const { gradient } = this.weight;
    const sums = new Float64Array(gradient.length);
    for (let at = 0; at < g.length; at += sums.length) {
      for (let j = 0; j < sums.length; j++) sums[j] += g[at + j] * u[at + j];
    }
    addTo(gradient, sums);
  }
}

/** The same over each column, of the rows of this batch: there are no running statistics. */
class BatchNorm implements Module {
  readonly parameters: readonly Parameter[];
  private readonly weight: Parameter;
  private readonly bias: Parameter;
  private kept: Kept | null = null;

  constructor(
    name: string,
    dim: number,
    precision: Precision,
    private readonly epsilon: number,
  ) {
    this.weight = parameter(`${name}.weight`, [dim], precision, 1);
    this.bias = parameter(`${name}.bias`, [dim], precision);
    this.parameters = [this.weight, this.bias];
  }

  forward(x: Matrix): Matrix {
    const { rows, cols, data } = x;
    if (rows < 2) throw new RangeError("batch normalisation needs two rows or more.");
    const unit = zeros(rows, cols, data);
    const y = zeros(rows, cols, data);
    const mean = new Float64Array(cols);
    const inverse = new Float64Array(cols);
    for (let at = 0; at < data.length; at++) mean[at % cols] += data[at] / rows;
    for (let at = 0; at < data.length; at++) inverse[at % cols] += (data[at] - mean[at % cols]) ** 2 / rows;
    for (let j = 0; j < cols; j++) inverse[j] = 1 / Math.sqrt(inverse[j] + this.epsilon);
    for (let at = 0; at < data.length; at++) {
      const j = at % cols;
      const u = (data[at] - mean[j]) * inverse[j];
      unit.data[at] = u;
      y.data[at] = this.weight.value[j] * u + this.bias.value[j];
    }
    this.kept = { unit, inverse };
    return y;
  }

  backward(gradient: Matrix): Matrix {
    const { unit, inverse } = saved(this.kept);
    const { rows, cols } = unit;
    const byInput = zeros(rows, cols, unit.data);
    const total = new Float64Array(cols);
    const along = new Float64Array(cols);
    for (let at = 0; at < unit.data.length; at++) {
      total[at % cols] += gradient.data[at];
      along[at % cols] += gradient.data[at] * unit.data[at];
    }
    for (let at = 0; at < unit.data.length; at++) {
      const j = at % cols;
      const rest = gradient.data[at] - (total[j] + along[j] * unit.data[at]) / rows;
      byInput.data[at] = this.weight.value[j] * inverse[j] * rest;
    }
    if (this.weight.requiresGradient) addTo(this.weight.gradient, along);
    if (this.bias.requiresGradient) addTo(this.bias.gradient, total);
    return byInput;
  }
}

/** Make a normalisation with PyTorch's epsilon for it, or a given one. */
export function normalisation(
  kind: NormName,
  name: string,
  dim: number,
  precision: Precision,
  epsilon?: number,
): Module {
  switch (kind) {
    case "layer":
      return new RowNorm(name, dim, precision, true, epsilon ?? 1e-5);
    case "rms":
      return new RowNorm(name, dim, precision, false, epsilon ?? rmsEpsilon(precision));
    case "batch":
      return new BatchNorm(name, dim, precision, epsilon ?? 1e-5);
  }
}
