/** What the tab through time says. */

import type { CellName } from "../../engine/recurrent/cells";
import type { Memory } from "../../engine/recurrent/memory";
import { horizonOf } from "../../engine/recurrent/memory";
import { memoryHorizon } from "../../engine/recurrent/theory";
import type { Colour, Series } from "../../figures/series";
import { short } from "../../page/number";
import type { Remembered } from "./remembering.svelte";

export const CELL_NAMES: Record<CellName, string> = { rnn: "RNN", lstm: "LSTM", gru: "GRU" };
export const CELL_COLOURS: Record<CellName, Colour> = { rnn: 0, lstm: 1, gru: 2 };

/** Steps after which a curve is at 1/1000 for good; of logarithms. */
export const horizonOfLogs = (logs: Float64Array): number => horizonOf(logs).horizon;

export function steps(value: number): string {
  return Number.isFinite(value) ? short(value) : "never";
}

/** Steps back from which on nothing is left but zero; -1 if it never is. */
export function underflow({ curve }: Memory): number {
  return curve.indexOf(0);
}

export function series(found: readonly Remembered[], expert: boolean): Series[] {
  return found.flatMap(({ cell, memory }): Series[] => {
    const { curve, parts, gatesAlone, logLaw } = memory;
    const x = Array.from(curve, (_, k) => k);
    const colour = CELL_COLOURS[cell];
    const name = CELL_NAMES[cell];
    const own: Series[] = [{ label: name, colour, style: "measured", x, y: curve }];
    own.push({ label: `${name}, theory`, colour, style: "predicted", x, y: logLaw, logs: true, yields: true });
    if (!expert) return own;
    const alone = cell === "rnn" ? "independent weights" : "gates alone";
    own.push({ label: `${name}, ${alone}`, colour, style: "reference", x, y: gatesAlone });
    for (const part of parts) {
      const where = part.name === "h" ? "hidden state" : "cell";
      own.push({ label: `${name}, ${where}`, colour: part.name === "h" ? 3 : 4, style: "measured", x, y: part.curve });
    }
    return own;
  });
}

/** One sentence on each cell. */
export function readings(found: readonly Remembered[]): string[] {
  return found.map(({ cell, memory, precision }) => {
    const { horizon, reached, slope, gate, curve } = memory;
    const length = curve.length - 1;
    const name = CELL_NAMES[cell];
    const zero = underflow(memory);
    const gone =
      zero > 0 ? ` From ${zero} steps back on the gradient is zero: it has left the range of ${precision}.` : "";
    const factor = `${short(Math.exp(slope))} per step`;
    if (horizon === Number.POSITIVE_INFINITY) return `${name}: ${unfallen(curve, slope)}.${gone}`;
    const gates = gate === null ? "" : `; ${cell === "gru" ? "update" : "forget"} gates are ${short(gate)} in the mean`;
    const where = reached
      ? `1/1000 of the gradient is left ${short(horizon)} steps back`
      : `more than 1/1000 is left after all ${length} steps, and 1/1000 would be after ${short(horizon)}`;
    return `${name}: ${where}, ${factor}${gates}.${gone}`;
  });
}

/** Of a gradient that comes to no horizon: it grows, or stays. */
function unfallen(curve: Float64Array, slope: number): string {
  const length = curve.length - 1;
  const end = curve[length];
  const factor = `${short(Math.exp(slope), Math.abs(slope) < 0.05 ? 4 : 3)} per step`;
  if (end === Number.POSITIVE_INFINITY) return `the gradient grows beyond all numbers (${factor})`;
  const back = `${length} steps back it is ${short(end)} times that at the last state (${factor})`;
  return `the gradient ${end > 1 ? "grows" : "does not fall for good"}: ${back}`;
}

/** A forget gate that sees only its bias. */
export function ofBias(bias: number): string {
  const gate = 1 / (1 + Math.exp(-bias));
  return `A forget gate of bias ${short(bias)} alone keeps ${short(gate)} per step: 1/1000 after ${steps(memoryHorizon(gate))} steps.`;
}
