/** How far back a recurrent network remembers: the gradient of its last state by those before, as `levada.probe` has it. */

import { floats, type Matrix, type Precision } from "../matrix";
import { Random } from "../random";
import { requireInteger } from "../require";
import { cells, type State } from "./cells";
import { LEFT, logCarried, nearZero } from "./theory";
import { PYTORCH_GAIN, type RecurrentOptions, Unrolled } from "./unrolled";

export const MAX_STEPS = 1000;
const MOST_KEPT = 2 ** 26;

export interface MemoryOptions extends RecurrentOptions {
  readonly steps: number;
  /** Sequences of standard normal inputs, each with a cotangent of its own. */
  readonly rows?: number;
}

/** All at k = 0, 1, ... `steps` steps back from the last. */
export interface Memory {
  /** `H(k) = sqrt(E |dh_T / dh_(T-k)|^2 / n)`, of the whole state; 0 where it underflowed. */
  readonly curve: Float64Array;
  /** Of an LSTM, what of it is in the hidden state and in the cell. */
  readonly parts: readonly { readonly name: "h" | "c"; readonly curve: Float64Array }[];
  /** What the measured gates alone would keep; without gates, weights that are independent of each other. */
  readonly gatesAlone: Float64Array;
  /** Natural logarithm of the law near a state of zero: see `logCarried`. */
  readonly logLaw: Float64Array;
  /** Where H falls to 1/1000 for good, extrapolated where it has not; infinite where it does not fall. */
  readonly horizon: number;
  readonly reached: boolean;
  /** Of ln H per step, down to 1/1000. */
  readonly slope: number;
  /** Mean of the forget or update gate over units, steps and rows; null without one. */
  readonly gate: number | null;
}

/** Cotangents on the sphere of radius sqrt(n), n numbers of a state: `E |J'v|^2 = |J|^2`. */
export function cotangents(parts: number, rows: number, units: number, precision: Precision, random: Random): State {
  const drawn = Array.from({ length: parts }, () => floats(rows * units, precision));
  for (let row = 0; row < rows; row++) {
    const own = drawn.map((part) => part.subarray(row * units, (row + 1) * units));
    for (const part of own) random.fillNormal(part, 1);
    const size = Math.hypot(...own.flatMap((part) => Array.from(part)));
    const scale = Math.sqrt(parts * units) / size;
    for (const part of own) for (let i = 0; i < units; i++) part[i] *= scale;
  }
  return drawn;
}

export function remember(options: MemoryOptions): Memory {
  const { steps, rows = 16, units, inputs, precision = "float64", seed = 0 } = options;
  requireInteger("steps", steps, 1, MAX_STEPS);
  requireInteger("rows", rows, 1, 256);
  const layer = new Unrolled(options);
  if (Unrolled.size(options, steps, rows) > MOST_KEPT) {
    throw new RangeError("this sequence keeps too much for its backward pass: take fewer steps, units or rows.");
  }
  const data = floats(steps * rows * inputs, precision);
  new Random(seed, "sequence").fillNormal(data, 1);
  const { parts } = cells[options.cell];
  const v = cotangents(parts.length, rows, units, precision, new Random(seed, "cotangents"));
  return measureMemory(layer, { data, rows: steps * rows, cols: inputs }, steps, v);
}

/** The same for a layer, inputs and cotangents that are given. */
export function measureMemory(layer: Unrolled, x: Matrix, steps: number, cotangent: State): Memory {
  const { cell, gain = PYTORCH_GAIN, forgetBias } = layer.options;
  layer.forward(x, steps);
  layer.backward(null, cotangent);
  const { parts, gated } = cells[cell];
  const back = layer.byState.map((part) => part.slice().reverse());
  const whole = Float64Array.from(back[0], (_, k) => Math.hypot(...back.map((part) => part[k])));
  const [start] = whole;
  const curve = whole.map((value) => value / start);
  const logs = curve.map(Math.log);
  const carries = layer.carries();
  const plane = carries.length / steps;
  const law = nearZero(cell, gain, forgetBias ?? 0);
  return {
    curve,
    parts: back.length > 1 ? back.map((part, i) => ({ name: parts[i], curve: part.map((one) => one / start) })) : [],
    gatesAlone: products(carries, steps, plane),
    logLaw: logCarried(law.carry, law.gain, steps),
    ...horizonOf(logs),
    slope: slopeOf(logs),
    gate: gated ? carries.reduce((total, value) => total + value, 0) / carries.length : null,
  };
}

/** Root mean square over rows and units of the product of the last k factors. */
function products(carries: Float64Array, steps: number, plane: number): Float64Array {
  const logs = new Float64Array(plane);
  return Float64Array.from({ length: steps + 1 }, (_, k) => {
    if (k === 0) return 1;
    let total = 0;
    for (let i = 0; i < plane; i++) {
      logs[i] += Math.log(Math.abs(carries[(steps - k) * plane + i]));
      total += Math.exp(2 * logs[i]);
    }
    return Math.sqrt(total / plane);
  });
}

/** Of ln H by least squares until it has fallen to 1/1000, or over all; at least over three steps. */
export function slopeOf(logs: Float64Array): number {
  const end = usable(logs);
  if (end < 2) return Number.NEGATIVE_INFINITY;
  const known = logs.subarray(0, end);
  const last = Math.min(end, Math.max(lastAbove(known) + 2, 3));
  // The first step also turns the cotangent into what the recurrence keeps: no part of the slope, if there are more.
  const first = last > 3 ? 1 : 0;
  const at = (first + last - 1) / 2;
  let product = 0;
  let square = 0;
  for (let k = first; k < last; k++) {
    product += (k - at) * known[k];
    square += (k - at) ** 2;
  }
  return product / square;
}

export function horizonOf(logs: Float64Array): { horizon: number; reached: boolean } {
  const bar = Math.log(LEFT);
  const last = Math.max(lastAbove(logs), 0);
  if (last + 1 < logs.length) {
    const [here, there] = [logs[last], logs[last + 1]];
    return { horizon: last + (Number.isFinite(there) ? (here - bar) / (here - there) : 1), reached: true };
  }
  const slope = slopeOf(logs);
  return { horizon: slope < -1e-9 ? last + (bar - logs[last]) / slope : Number.POSITIVE_INFINITY, reached: false };
}

function usable(logs: Float64Array): number {
  const gone = logs.findIndex((log) => !Number.isFinite(log));
  return gone < 0 ? logs.length : gone;
}

function lastAbove(logs: Float64Array): number {
  return logs.findLastIndex((log) => log >= Math.log(LEFT));
}
