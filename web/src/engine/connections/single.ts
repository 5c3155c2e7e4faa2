/** Connections whose state is one tensor: plain, residual, post-norm and highway. */

import type { Activation } from "../activation";
import { sigmoidAll } from "../activation";
import * as kernels from "../kernels";
import { Linear } from "../linear";
import { type Matrix, type Precision, sum, unwritten } from "../matrix";
import { Activate, type Module, type Parameter, saved } from "../module";
import { type NormName, normalisation } from "../normalise";
import type { Connection, Ends, State } from "./connection";

export const singleEnds: Ends = {
  parameters: [],
  begin: (x) => [x],
  beginBackward: ([gradient]) => gradient,
  end: ([x]) => x,
  endBackward: (gradient) => [gradient],
};

const pass: Module = { parameters: [], forward: (x) => x, backward: (gradient) => gradient };

const after = (activation: Activation | null): Module => (activation ? new Activate(activation) : pass);

/** `x' = activation(f(x))`. */
export class Plain implements Connection {
  readonly parameters: readonly Parameter[] = [];
  private readonly activate: Module;

  constructor(activation: Activation | null = null) {
    this.activate = after(activation);
  }

  read([x]: State): Matrix {
    return x;
  }

  write(_: State, out: Matrix): State {
    return [this.activate.forward(out)];
  }

  writeBackward([gradient]: State): Matrix {
    return this.activate.backward(gradient);
  }

  readBackward(gradient: Matrix): State {
    return [gradient];
  }
}

/** `x' = activation(x + f(x))`. */
export class Residual implements Connection {
  readonly parameters: readonly Parameter[] = [];
  private readonly activate: Module;
  private skipped: Matrix | null = null;

  constructor(activation: Activation | null = null) {
    this.activate = after(activation);
  }

  read([x]: State): Matrix {
    return x;
  }

  write([x]: State, out: Matrix): State {
    return [this.activate.forward(sum(x, out))];
  }

  writeBackward([gradient]: State): Matrix {
    this.skipped = this.activate.backward(gradient);
    return this.skipped;
  }

  readBackward(gradient: Matrix): State {
    return [sum(saved(this.skipped), gradient)];
  }
}

/** `x' = norm(alpha x + f(x))`. */
export class PostNorm implements Connection {
  readonly parameters: readonly Parameter[];
  private readonly norm: Module;
  private skipped: Matrix | null = null;

  constructor(
    name: string,
    dim: number,
    precision: Precision,
    private readonly alpha = 1,
    norm: NormName = "layer",
  ) {
    this.norm = normalisation(norm, `${name}.norm`, dim, precision);
    this.parameters = this.norm.parameters;
  }

  read([x]: State): Matrix {
    return x;
  }

  write([x]: State, out: Matrix): State {
    return [this.norm.forward(scaledSum(this.alpha, x, out))];
  }

  writeBackward([gradient]: State): Matrix {
    this.skipped = this.norm.backward(gradient);
    return this.skipped;
  }

  readBackward(gradient: Matrix): State {
    return [scaledSum(this.alpha, saved(this.skipped), gradient)];
  }
}

function scaledSum(alpha: number, x: Matrix, y: Matrix): Matrix {
  const total = unwritten(x.rows, x.cols, x.data);
  if (kernels.scaledSum(total.data, alpha, x.data, y.data)) return total;
  for (let i = 0; i < total.data.length; i++) total.data[i] = alpha * x.data[i] + y.data[i];
  return total;
}

/** `sigmoid(W x + b)`, channel by channel. */
class Gate {
  readonly parameters: readonly Parameter[];
  private readonly linear: Linear;
  private open: Matrix | null = null;

  constructor(name: string, dim: number, precision: Precision, seed: number, bias: number) {
    this.linear = new Linear(name, dim, dim, precision, { seed });
    this.linear.bias?.value.fill(bias);
    this.parameters = this.linear.parameters;
  }

  forward(x: Matrix): Matrix {
    const open = this.linear.forward(x);
    sigmoidAll(open.data);
    this.open = open;
    return open;
  }

  /** Takes over the gradient it is given. */
  backward(gradient: Matrix): Matrix {
    const open = saved(this.open).data;
    const { data } = gradient;
    if (!kernels.each("sigmoidBack", data, data, open)) {
      for (let i = 0; i < open.length; i++) data[i] *= open[i] * (1 - open[i]);
    }
    return this.linear.backward(gradient);
  }
}

/** `x' = T(x) f(x) + C(x) x`, `T = sigmoid(gate(x))` and `C = 1 - T`, or `sigmoid(carry(x))` where not coupled. */
export class Highway implements Connection {
  readonly parameters: readonly Parameter[];
  private readonly gate: Gate;
  private readonly carry: Gate | null;
  private kept: { x: Matrix; out: Matrix; open: Matrix; carried: Matrix | null } | null = null;
  private gradient: Matrix | null = null;

  constructor(name: string, dim: number, precision: Precision, seed: number, { coupled = true, bias = -2 } = {}) {
    this.gate = new Gate(`${name}.gate`, dim, precision, seed, bias);
    this.carry = coupled ? null : new Gate(`${name}.carry`, dim, precision, seed, -bias);
    this.parameters = [...this.gate.parameters, ...(this.carry?.parameters ?? [])];
  }

  read([x]: State): Matrix {
    return x;
  }

  write([x]: State, out: Matrix): State {
    const open = this.gate.forward(x);
    const carried = this.carry?.forward(x) ?? null;
    this.kept = { x, out, open, carried };
    const y = unwritten(x.rows, x.cols, x.data);
    if (!carried && kernels.gate(y.data, x.data, out.data, open.data)) return [y];
    for (let i = 0; i < y.data.length; i++) {
      const [skip, branch, t] = [x.data[i], out.data[i], open.data[i]];
      y.data[i] = carried ? t * branch + carried.data[i] * skip : skip + t * (branch - skip);
    }
    return [y];
  }

  writeBackward([gradient]: State): Matrix {
    this.gradient = gradient;
    return times(gradient, saved(this.kept).open);
  }

  readBackward(byBranch: Matrix): State {
    const { x, out, open, carried } = saved(this.kept);
    const g = saved(this.gradient);
    const byGate = unwritten(x.rows, x.cols, x.data);
    const total = unwritten(x.rows, x.cols, x.data);
    const parts = [x.data, out.data, open.data] as const;
    const done = !carried && kernels.gateBack(total.data, byGate.data, byBranch.data, g.data, parts);
    for (let i = done ? total.data.length : 0; i < total.data.length; i++) {
      byGate.data[i] = g.data[i] * (carried ? out.data[i] : out.data[i] - x.data[i]);
      total.data[i] = byBranch.data[i] + g.data[i] * (carried ? carried.data[i] : 1 - open.data[i]);
    }
    const through = sum(total, this.gate.backward(byGate));
    return [this.carry ? sum(through, this.carry.backward(times(g, x))) : through];
  }
}

function times(x: Matrix, y: Matrix): Matrix {
  const result = unwritten(x.rows, x.cols, x.data);
  if (kernels.each("times", result.data, x.data, y.data)) return result;
  for (let i = 0; i < result.data.length; i++) result.data[i] = x.data[i] * y.data[i];
  return result;
}
