/** The linear layer, and the initialisations that set the scale of what deep networks carry. */

import { addRow, type Floats, type Matrix, type Precision, plain, product, transposed, unwritten } from "./matrix";
import { addColumnSums, type Module, type Parameter, parameter, saved } from "./module";
import { Random } from "./random";

/** How weights and biases start; the gain multiplies every weight. `W` is `dim_out x dim_in`. */
export type Initialisation =
  /** Both from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as `nn.Linear` does. */
  | { readonly name: "pytorch_default"; readonly gain?: number }
  /** N(0, 2/fan_in), no bias. */
  | { readonly name: "he"; readonly gain?: number }
  /** U(-a, a) with a = sqrt(6/(fan_in + fan_out)), no bias: Xavier's. */
  | { readonly name: "glorot"; readonly gain?: number }
  /** Orthonormal rows or columns, no bias. */
  | { readonly name: "orthogonal"; readonly gain?: number }
  /** N(0, weightVariance/fan_in), biases from N(0, biasVariance): the random network of mean-field theory. */
  | {
      readonly name: "gaussian";
      readonly gain?: number;
      readonly weightVariance: number;
      readonly biasVariance: number;
    };

/** What an initialisation means to theory: fan_in times the variance of a weight, and the variance of a bias. */
export function variances(init: Initialisation, fanIn: number, fanOut = fanIn): { weight: number; bias: number } {
  const square = (init.gain ?? 1) ** 2;
  switch (init.name) {
    case "pytorch_default":
      return { weight: square / 3, bias: 1 / (3 * fanIn) };
    case "he":
      return { weight: 2 * square, bias: 0 };
    case "glorot":
      return { weight: (2 * square * fanIn) / (fanIn + fanOut), bias: 0 };
    case "orthogonal":
      // All squares add up to the shorter side.
      return { weight: square * Math.min(1, fanIn / fanOut), bias: 0 };
    case "gaussian":
      return { weight: square * init.weightVariance, bias: init.biasVariance };
  }
}

/** `rows x cols`, the shorter side orthonormal: Gaussian vectors, made orthogonal one after the other, twice. */
export function orthogonal(rows: number, cols: number, random: Random): Float64Array {
  const [count, size] = rows < cols ? [rows, cols] : [cols, rows];
  // One vector behind the other.
  const all = Float64Array.from({ length: count * size }, () => random.normal());
  for (let own = 0; own < all.length; own += size) {
    // Once leaves what rounding made of the subtraction; a second time is enough.
    for (let pass = 0; pass < 2; pass++) {
      for (let other = 0; other < own; other += size) makeOrthogonal(all, own, other, size);
    }
    const norm = Math.hypot(...all.subarray(own, own + size));
    for (let i = own; i < own + size; i++) all[i] /= norm;
  }
  if (rows < cols) return all;
  return Float64Array.from({ length: rows * cols }, (_, i) => all[(i % cols) * size + Math.floor(i / cols)]);
}

/** Take from the vector at `own` what lies along that at `other`. */
function makeOrthogonal(all: Float64Array, own: number, other: number, size: number): void {
  let along = 0;
  for (let i = 0; i < size; i++) along += all[own + i] * all[other + i];
  for (let i = 0; i < size; i++) all[own + i] -= along * all[other + i];
}

export function initialise(
  weight: Floats,
  bias: Floats | null,
  [fanOut, fanIn]: readonly [number, number],
  init: Initialisation,
  random: Random,
): void {
  const gain = init.gain ?? 1;
  bias?.fill(0);
  switch (init.name) {
    case "pytorch_default":
      random.fillUniform(weight, gain / Math.sqrt(fanIn));
      if (bias) random.fillUniform(bias, 1 / Math.sqrt(fanIn));
      return;
    case "he":
      random.fillNormal(weight, gain * Math.sqrt(2 / fanIn));
      return;
    case "glorot":
      random.fillUniform(weight, gain * Math.sqrt(6 / (fanIn + fanOut)));
      return;
    case "orthogonal":
      weight.set(orthogonal(fanOut, fanIn, random).map((value) => gain * value));
      return;
    case "gaussian":
      random.fillNormal(weight, gain * Math.sqrt(init.weightVariance / fanIn));
      if (bias) random.fillNormal(bias, Math.sqrt(init.biasVariance));
      return;
  }
}

export interface LinearOptions {
  readonly bias?: boolean;
  readonly init?: Initialisation;
  readonly seed?: number;
}

/** `y = x W' + b`, for `x` of `rows x dim_in`. */
export class Linear implements Module {
  readonly parameters: readonly Parameter[];
  readonly weight: Parameter;
  readonly bias: Parameter | null;
  private readonly seed: number;
  private input: Matrix | null = null;

  constructor(
    private readonly name: string,
    readonly dimIn: number,
    readonly dimOut: number,
    precision: Precision,
    { bias = true, init, seed = 0 }: LinearOptions = {},
  ) {
    this.seed = seed;
    this.weight = parameter(`${name}.weight`, [dimOut, dimIn], precision);
    this.bias = bias ? parameter(`${name}.bias`, [dimOut], precision) : null;
    this.parameters = this.bias ? [this.weight, this.bias] : [this.weight];
    this.draw(init);
  }

  /** Draw weight and bias, from the same random numbers each time. */
  draw(init: Initialisation = { name: "pytorch_default" }): void {
    const { weight, bias, name, seed } = this;
    initialise(weight.value, bias?.value ?? null, [this.dimOut, this.dimIn], init, new Random(seed, name));
  }

  forward(x: Matrix): Matrix {
    if (x.cols !== this.dimIn) throw new RangeError(`${this.weight.name} takes ${this.dimIn} columns, got ${x.cols}.`);
    this.input = x;
    const y = unwritten(x.rows, this.dimOut, x.data);
    const { dimIn, dimOut } = this;
    product(y.data, plain(x.data, dimIn), transposed(this.weight.value, dimIn), [x.rows, dimOut, dimIn]);
    if (this.bias) addRow(y.data, this.bias.value);
    return y;
  }

  backward(gradient: Matrix): Matrix {
    const x = saved(this.input);
    const { dimIn, dimOut } = this;
    const g = gradient.data;
    if (this.weight.requiresGradient) {
      product(this.weight.gradient, transposed(g, dimOut), plain(x.data, dimIn), [dimOut, dimIn, x.rows], true);
    }
    if (this.bias?.requiresGradient) addColumnSums(this.bias.gradient, gradient);
    const byInput = unwritten(x.rows, dimIn, x.data);
    product(byInput.data, plain(g, dimOut), plain(this.weight.value, dimIn), [x.rows, dimIn, dimOut]);
    return byInput;
  }
}
