/** Recurrent cells with PyTorch's parametrisation: one step of a batch, and back. */

import { sigmoid } from "../activation";
import type { Floats } from "../matrix";

export type CellName = "rnn" | "lstm" | "gru";

/** Rows of the batch and units of a state. */
export interface Size {
  readonly rows: number;
  readonly units: number;
}

/** A state is `[h]`, of an LSTM `[h, c]`: each `rows x units`. */
export type State = readonly Floats[];

/** What the gates are given: by the inputs, and by the last state; each `rows x (gates * units)`. */
export interface Given {
  readonly byInput: Floats;
  readonly byState: Floats;
}

export interface Cell {
  readonly gates: number;
  readonly parts: readonly ("h" | "c")[];
  /** Numbers that a step keeps for each unit and row; the factor on the unit's own memory is the first, if it has one. */
  readonly kept: number;
  readonly gated: boolean;
  /** Write the next state, and what the way back needs. */
  forward(given: Given, before: State, after: State, kept: Floats, size: Size): void;
  /**
   * From the gradient by the state after the step, write those by what the gates were given, and to `byBefore` what
   * reaches the state before it otherwise than through them.
   */
  backward(by: State, before: State, after: State, kept: Floats, size: Size, to: Given, byBefore: State): void;
}

/** `h' = tanh(a + b)`, with a from the input and b from the last state. */
const rnn: Cell = {
  gates: 1,
  parts: ["h"],
  kept: 0,
  gated: false,
  forward({ byInput, byState }, _, [h]) {
    for (let i = 0; i < h.length; i++) h[i] = Math.tanh(byInput[i] + byState[i]);
  },
  backward([by], _, [h], __, ___, to, [byBefore]) {
    for (let i = 0; i < h.length; i++) {
      const slope = by[i] * (1 - h[i] * h[i]);
      to.byInput[i] = slope;
      to.byState[i] = slope;
    }
    byBefore.fill(0);
  },
};

/** `c' = f c + i g`, `h' = o tanh(c')`; gates in PyTorch's order: i, f, g, o. Keeps f, i, g, o and tanh(c'). */
const lstm: Cell = {
  gates: 4,
  parts: ["h", "c"],
  kept: 5,
  gated: true,
  forward({ byInput, byState }, [, before], [h, c], kept, { units: n }) {
    const plane = h.length;
    for (let at = 0; at < plane; at++) {
      const place = 4 * n * Math.floor(at / n) + (at % n);
      const i = sigmoid(byInput[place] + byState[place]);
      const f = sigmoid(byInput[place + n] + byState[place + n]);
      const g = Math.tanh(byInput[place + 2 * n] + byState[place + 2 * n]);
      const o = sigmoid(byInput[place + 3 * n] + byState[place + 3 * n]);
      c[at] = f * before[at] + i * g;
      const squashed = Math.tanh(c[at]);
      h[at] = o * squashed;
      kept[at] = f;
      kept[at + plane] = i;
      kept[at + 2 * plane] = g;
      kept[at + 3 * plane] = o;
      kept[at + 4 * plane] = squashed;
    }
  },
  backward([byH, byC], [, before], _, kept, { units: n }, to, [toH, toC]) {
    const plane = byH.length;
    toH.fill(0);
    for (let at = 0; at < plane; at++) {
      const place = 4 * n * Math.floor(at / n) + (at % n);
      const f = kept[at];
      const i = kept[at + plane];
      const g = kept[at + 2 * plane];
      const o = kept[at + 3 * plane];
      const squashed = kept[at + 4 * plane];
      const cell = byC[at] + byH[at] * o * (1 - squashed * squashed);
      toC[at] = cell * f;
      to.byInput[place] = cell * g * i * (1 - i);
      to.byInput[place + n] = cell * before[at] * f * (1 - f);
      to.byInput[place + 2 * n] = cell * i * (1 - g * g);
      to.byInput[place + 3 * n] = byH[at] * squashed * o * (1 - o);
    }
    to.byState.set(to.byInput);
  },
};

/** `h' = (1 - z) m + z h` with `m = tanh(a + r b)`; gates in PyTorch's order: r, z, m. Keeps z, r, m and b. */
const gru: Cell = {
  gates: 3,
  parts: ["h"],
  kept: 4,
  gated: true,
  forward({ byInput, byState }, [before], [h], kept, { units: n }) {
    const plane = h.length;
    for (let at = 0; at < plane; at++) {
      const place = 3 * n * Math.floor(at / n) + (at % n);
      const r = sigmoid(byInput[place] + byState[place]);
      const z = sigmoid(byInput[place + n] + byState[place + n]);
      const given = byState[place + 2 * n];
      const m = Math.tanh(byInput[place + 2 * n] + r * given);
      h[at] = (1 - z) * m + z * before[at];
      kept[at] = z;
      kept[at + plane] = r;
      kept[at + 2 * plane] = m;
      kept[at + 3 * plane] = given;
    }
  },
  backward([by], [before], _, kept, { units: n }, to, [toH]) {
    const plane = by.length;
    for (let at = 0; at < plane; at++) {
      const place = 3 * n * Math.floor(at / n) + (at % n);
      const z = kept[at];
      const r = kept[at + plane];
      const m = kept[at + 2 * plane];
      const given = kept[at + 3 * plane];
      const candidate = by[at] * (1 - z) * (1 - m * m);
      const reset = candidate * given * r * (1 - r);
      const update = by[at] * (before[at] - m) * z * (1 - z);
      toH[at] = by[at] * z;
      to.byInput[place] = reset;
      to.byInput[place + n] = update;
      to.byInput[place + 2 * n] = candidate;
      to.byState[place] = reset;
      to.byState[place + n] = update;
      to.byState[place + 2 * n] = candidate * r;
    }
  },
};

export const cells: Readonly<Record<CellName, Cell>> = { rnn, lstm, gru };
