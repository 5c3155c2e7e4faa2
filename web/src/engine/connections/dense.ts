/** Dense connections: every layer reads what all the layers before it returned, from one shared buffer. */

import * as kernels from "../kernels";
import { type Matrix, unwritten, zeros } from "../matrix";
import type { Parameter } from "../module";
import { saved } from "../module";
import type { Connection, Ends, State } from "./connection";

/** Columns from `start` to `end`, copied. */
function columns(x: Matrix, start: number, end: number): Matrix {
  const part = unwritten(x.rows, end - start, x.data);
  const from = { data: x.data, cols: x.cols, start };
  if (kernels.columns({ data: part.data, cols: part.cols, start: 0 }, from, x.rows, part.cols, false)) return part;
  for (let i = 0; i < x.rows; i++) {
    part.data.set(x.data.subarray(i * x.cols + start, i * x.cols + end), i * part.cols);
  }
  return part;
}

/** The buffer is as wide as the last layer's features; a layer fills its own columns, which are never changed again. */
export function denseEnds(dim: number, depth: number, growth: number): Ends {
  const width = dim + depth * growth;
  return {
    parameters: [],
    begin(x) {
      const buffer = zeros(x.rows, width, x.data);
      for (let i = 0; i < x.rows; i++) buffer.data.set(x.data.subarray(i * dim, (i + 1) * dim), i * width);
      return [buffer];
    },
    beginBackward: ([gradient]) => columns(gradient, 0, dim),
    end: ([buffer]) => buffer,
    endBackward: (gradient) => [columns(gradient, 0, width)],
  };
}

/** `x' = concat(x, f(x))`. */
export class Dense implements Connection {
  readonly parameters: readonly Parameter[] = [];
  private readonly used: number;
  private gradient: Matrix | null = null;

  constructor(
    dim: number,
    layer: number,
    private readonly growth: number,
  ) {
    this.used = dim + layer * growth;
  }

  read([buffer]: State): Matrix {
    return columns(buffer, 0, this.used);
  }

  write([buffer]: State, out: Matrix): State {
    const to = { data: buffer.data, cols: buffer.cols, start: this.used };
    const from = { data: out.data, cols: this.growth, start: 0 };
    if (kernels.columns(to, from, out.rows, this.growth, false)) return [buffer];
    for (let i = 0; i < out.rows; i++) {
      const row = out.data.subarray(i * this.growth, (i + 1) * this.growth);
      buffer.data.set(row, i * buffer.cols + this.used);
    }
    return [buffer];
  }

  writeBackward([gradient]: State): Matrix {
    this.gradient = gradient;
    return columns(gradient, this.used, this.used + this.growth);
  }

  readBackward(gradient: Matrix): State {
    const total = saved(this.gradient);
    const { used } = this;
    const [from, to] = [gradient.data, total.data];
    const source = { data: from, cols: used, start: 0 };
    if (kernels.columns({ data: to, cols: total.cols, start: 0 }, source, total.rows, used, true)) return [total];
    for (let i = 0; i < total.rows; i++) {
      const [start, own] = [i * total.cols, i * used];
      for (let j = 0; j < used; j++) to[start + j] += from[own + j];
    }
    return [total];
  }
}
