/** What every part of a network is: a forward pass that keeps what its backward pass needs. */

import type { Activation } from "./activation";
import * as kernels from "./kernels";
import { addTo, type Floats, floats, type Matrix, type Precision, precisionOf, unwritten } from "./matrix";

export interface Parameter {
  /** As in PyTorch's state dict, such as `layers.3.branch.linear.weight`. */
  readonly name: string;
  readonly value: Floats;
  /** Backward passes add to it; made when it is first asked for. */
  readonly gradient: Floats;
  readonly shape: readonly number[];
  /** Whether weight decay applies to it: to matrices, as in `levada.parameter_groups`. */
  readonly decays: boolean;
  /** As in PyTorch: where false, backward passes leave `gradient` as it is, and spare what it would cost. */
  requiresGradient: boolean;
}

export function parameter(
  name: string,
  shape: readonly number[],
  precision: Precision,
  fill: number | ArrayLike<number> = 0,
  decays = shape.length > 1,
): Parameter {
  const value = floats(
    shape.reduce((product, size) => product * size, 1),
    precision,
  );
  if (typeof fill !== "number") value.set(fill);
  else if (fill !== 0) value.fill(fill);
  return new Learned(name, shape, value, decays);
}

class Learned implements Parameter {
  requiresGradient = true;
  private made: Floats | null = null;

  constructor(
    readonly name: string,
    readonly shape: readonly number[],
    readonly value: Floats,
    readonly decays: boolean,
  ) {}

  get gradient(): Floats {
    this.made ??= floats(this.value.length, precisionOf(this.value)); // to stay, unlike what a pass makes
    return this.made;
  }
}

/** `backward` is called once after each `forward`, with the gradient by what that returned. */
export interface Module {
  readonly parameters: readonly Parameter[];
  forward(x: Matrix): Matrix;
  /** Return the gradient by the input, and add to the gradients of the parameters that require one. */
  backward(gradient: Matrix): Matrix;
}

export class Sequential implements Module {
  readonly parameters: readonly Parameter[];

  constructor(private readonly modules: readonly Module[]) {
    this.parameters = modules.flatMap((module) => module.parameters);
  }

  forward(x: Matrix): Matrix {
    return this.modules.reduce((value, module) => module.forward(value), x);
  }

  backward(gradient: Matrix): Matrix {
    return this.modules.reduceRight((value, module) => module.backward(value), gradient);
  }
}

/** `y = phi(x)`, elementwise. */
export class Activate implements Module {
  readonly parameters: readonly Parameter[] = [];
  /** Its input, or its output where that says the slope. */
  private kept: Matrix | null = null;

  constructor(private readonly activation: Activation) {}

  forward(x: Matrix): Matrix {
    const y = unwritten(x.rows, x.cols, x.data);
    const { activation } = this;
    const [from, to] = [x.data, y.data];
    const done = activation.forth !== undefined && kernels.map(activation.forth, to, from);
    for (let i = done ? to.length : 0; i < to.length; i++) to[i] = activation.value(from[i]);
    this.kept = activation.slopeOfValue ? y : x;
    return y;
  }

  backward(gradient: Matrix): Matrix {
    const kept = saved(this.kept);
    const byInput = unwritten(kept.rows, kept.cols, kept.data);
    const { activation } = this;
    const [g, from, to] = [gradient.data, kept.data, byInput.data];
    const { slopeOfValue, back, selects } = activation;
    if (back && kernels.each(back, to, g, from)) return byInput;
    if (slopeOfValue) for (let i = 0; i < to.length; i++) to[i] = g[i] * slopeOfValue(from[i]);
    else if (selects) for (let i = 0; i < to.length; i++) to[i] = activation.slope(from[i]) === 0 ? 0 : g[i];
    else for (let i = 0; i < to.length; i++) to[i] = g[i] * activation.slope(from[i]);
    return byInput;
  }
}

/** What a forward pass kept. */
export function saved<T>(value: T | null): T {
  if (value === null) throw new Error("backward was called before forward.");
  return value;
}

/** Whether backward passes from now on add to the gradients of these. */
export function requireGradients(parameters: readonly Parameter[], required: boolean): void {
  for (const one of parameters) one.requiresGradient = required;
}

export function zeroGradients(parameters: readonly Parameter[]): void {
  for (const one of parameters) if (one.requiresGradient) one.gradient.fill(0);
}

/** Add the sums of columns: the gradient of what was added to every row. */
export function addColumnSums(total: Floats, x: Matrix): void {
  const sums = new Float64Array(x.cols);
  for (let i = 0; i < x.rows; i++) for (let j = 0; j < x.cols; j++) sums[j] += x.data[i * x.cols + j];
  addTo(total, sums);
}
