/** A recurrent layer over a whole sequence: `nn.RNN`, `nn.LSTM` and `nn.GRU` of one layer, with backpropagation in time. */

import { orthogonal } from "../linear";
import { addTo, type Floats, floats, type Matrix, type Precision, plain, product, rms, transposed } from "../matrix";
import { addColumnSums, type Parameter, parameter, saved } from "../module";
import { Random } from "../random";
import { requireInteger, requireOneOf } from "../require";
import { type Cell, type CellName, cells, type Given, type State } from "./cells";

export interface RecurrentOptions {
  readonly cell: CellName;
  readonly inputs: number;
  readonly units: number;
  /** Recurrent weights have a variance of `gain^2 / units`; PyTorch draws `3^(-1/2)`. */
  readonly gain?: number;
  /** Orthogonal recurrent weights, a square for each gate, times the gain. */
  readonly orthogonal?: boolean;
  /** What all units' forget gates (of a GRU: update gates) have as their bias, over both vectors; drawn if left out. */
  readonly forgetBias?: number;
  readonly precision?: Precision;
  readonly seed?: number;
}

export const PYTORCH_GAIN = 1 / Math.sqrt(3);
export const MAX_UNITS = 256;

interface Kept {
  readonly x: Matrix;
  readonly steps: number;
  readonly rows: number;
  /** Each part of the state at all times, the initial one first: `(steps + 1) x rows x units`. */
  readonly states: Floats[];
  readonly gates: Floats;
}

/** Time comes first: row `t * rows + i` is step t of sequence i. */
export class Unrolled {
  readonly parameters: readonly Parameter[];
  /** Root mean square of the gradient by each part of the state at each of `steps + 1` times, the initial one first. */
  byState: readonly Float64Array[] = [];
  private readonly cell: Cell;
  private readonly units: number;
  private readonly inputs: number;
  private readonly precision: Precision;
  private kept: Kept | null = null;

  constructor(readonly options: RecurrentOptions) {
    requireOneOf("cell", options.cell, Object.keys(cells));
    requireInteger("units", options.units, 1, MAX_UNITS);
    requireInteger("inputs", options.inputs, 1, MAX_UNITS);
    this.cell = cells[options.cell];
    this.units = options.units;
    this.inputs = options.inputs;
    this.precision = options.precision ?? "float64";
    this.parameters = this.initialised();
  }

  /** What a pass of so many steps and rows keeps, in numbers. */
  static size({ cell, inputs, units }: RecurrentOptions, steps: number, rows: number): number {
    const { gates, kept, parts } = cells[cell];
    return steps * rows * (inputs + units * (2 * gates + kept + parts.length));
  }

  private initialised(): Parameter[] {
    const { gain = PYTORCH_GAIN, forgetBias, seed = 0 } = this.options;
    const { gates, gated } = this.cell;
    const { units: n } = this;
    const [ih, hh] = ["weight_ih_l0", "weight_hh_l0"].map((name, place) =>
      parameter(name, [gates * n, place ? n : this.inputs], this.precision),
    );
    const biases = ["bias_ih_l0", "bias_hh_l0"].map((name) => parameter(name, [gates * n], this.precision));
    for (const own of [ih, ...biases]) new Random(seed, own.name).fillUniform(own.value, 1 / Math.sqrt(n));
    const random = new Random(seed, hh.name);
    if (this.options.orthogonal) {
      for (let gate = 0; gate < gates; gate++) {
        hh.value.set(
          orthogonal(n, n, random).map((value) => gain * value),
          gate * n * n,
        );
      }
    } else {
      random.fillUniform(hh.value, gain * Math.sqrt(3 / n));
    }
    if (gated && forgetBias !== undefined) {
      biases[0].value.fill(forgetBias, n, 2 * n); // both cells have it second
      biases[1].value.fill(0, n, 2 * n);
    }
    return [ih, hh, ...biases];
  }

  /** Return the hidden state after each step, `steps * rows` rows; from an initial state of zero if none is given. */
  forward(x: Matrix, steps: number, initial?: State): Matrix {
    const { cell, units: n } = this;
    const rows = x.rows / steps;
    if (!Number.isInteger(rows) || x.cols !== this.inputs) {
      throw new RangeError(`${steps} steps of ${this.inputs} inputs cannot be ${x.rows} x ${x.cols}.`);
    }
    const [ih, hh, bih, bhh] = this.parameters.map(({ value }) => value);
    const wide = cell.gates * n;
    const byInput = floats(x.rows * wide, this.precision);
    product(byInput, plain(x.data, x.cols), transposed(ih, x.cols), [x.rows, wide, x.cols]);
    for (let i = 0; i < byInput.length; i++) byInput[i] += bih[i % wide];
    const states = cell.parts.map((_, part) => {
      const all = floats((steps + 1) * rows * n, this.precision);
      if (initial) all.set(initial[part]);
      return all;
    });
    const gates = floats(steps * rows * n * cell.kept, this.precision);
    this.kept = { x, steps, rows, states, gates };
    const byState = floats(rows * wide, this.precision);
    for (let t = 0; t < steps; t++) {
      const before = this.at(t);
      product(byState, plain(before[0], n), transposed(hh, n), [rows, wide, n]);
      for (let i = 0; i < byState.length; i++) byState[i] += bhh[i % wide];
      const given = { byInput: byInput.subarray(t * rows * wide, (t + 1) * rows * wide), byState };
      cell.forward(given, before, this.at(t + 1), this.gatesAt(t), { rows, units: n });
    }
    return { data: states[0].subarray(rows * n), rows: steps * rows, cols: n };
  }

  /**
   * From gradients by the hidden state after each step, or null, and by the last state, return those by the inputs and by
   * the initial state.
   */
  backward(byOutputs: Matrix | null, byLast: State): { byInput: Matrix; byInitial: State } {
    const { x, steps, rows } = saved(this.kept);
    const { cell, units: n } = this;
    const wide = cell.gates * n;
    const hh = this.parameters[1].value;
    const all: Given = {
      byInput: floats(steps * rows * wide, this.precision),
      byState: floats(steps * rows * wide, this.precision),
    };
    this.byState = cell.parts.map(() => new Float64Array(steps + 1));
    let by = byLast.map((part) => part.slice());
    let other = by.map((part) => part.slice());
    const through = floats(rows * n, this.precision);
    for (let t = steps - 1; t >= 0; t--) {
      if (byOutputs) addTo(by[0], byOutputs.data.subarray(t * rows * n, (t + 1) * rows * n));
      this.measure(t + 1, by);
      const own = (data: Floats) => data.subarray(t * rows * wide, (t + 1) * rows * wide);
      const to = { byInput: own(all.byInput), byState: own(all.byState) };
      cell.backward(by, this.at(t), this.at(t + 1), this.gatesAt(t), { rows, units: n }, to, other);
      product(through, plain(to.byState, wide), plain(hh, n), [rows, n, wide]);
      addTo(other[0], through);
      [by, other] = [other, by];
    }
    this.measure(0, by);
    return { byInput: this.accumulate(x, all, steps * rows), byInitial: by };
  }

  /**
   * The factor on each unit's own memory, `steps x rows x units`: its forget or update gate. Without one, the gain of
   * recurrent weights that are independent of each other: `|W| / sqrt(units)` times the root mean square of the slopes.
   */
  carries(): Float64Array {
    const { steps, rows, states } = saved(this.kept);
    const { units: n } = this;
    const plane = rows * n;
    const found = new Float64Array(steps * plane);
    if (this.cell.gated) {
      for (let t = 0; t < steps; t++) found.set(this.gatesAt(t).subarray(0, plane), t * plane);
      return found;
    }
    const gain = Math.sqrt(n) * rms(this.parameters[1].value);
    for (let start = 0; start < found.length; start += n) {
      const slopes = Float64Array.from(states[0].subarray(plane + start, plane + start + n), (h) => 1 - h * h);
      found.fill(gain * rms(slopes), start, start + n);
    }
    return found;
  }

  private accumulate(x: Matrix, { byInput, byState }: Given, rows: number): Matrix {
    const [ih, hh, bih, bhh] = this.parameters;
    const n = this.units;
    const wide = this.cell.gates * n;
    product(ih.gradient, transposed(byInput, wide), plain(x.data, x.cols), [wide, x.cols, rows], true);
    const before = saved(this.kept).states[0]; // without its last, which `rows` leaves out
    product(hh.gradient, transposed(byState, wide), plain(before, n), [wide, n, rows], true);
    addColumnSums(bih.gradient, { data: byInput, rows, cols: wide });
    addColumnSums(bhh.gradient, { data: byState, rows, cols: wide });
    const data = floats(rows * x.cols, this.precision);
    product(data, plain(byInput, wide), plain(ih.value, x.cols), [rows, x.cols, wide]);
    return { data, rows, cols: x.cols };
  }

  private at(t: number): State {
    const { rows, states } = saved(this.kept);
    const size = rows * this.units;
    return states.map((all) => all.subarray(t * size, (t + 1) * size));
  }

  private gatesAt(t: number): Floats {
    const { rows, gates } = saved(this.kept);
    const size = rows * this.units * this.cell.kept;
    return gates.subarray(t * size, (t + 1) * size);
  }

  private measure(t: number, by: State): void {
    by.forEach((part, place) => {
      this.byState[place][t] = rms(part);
    });
  }
}
