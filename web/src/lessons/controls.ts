/** What a reader may change in the figures of the lessons, and how. */

import { activationNames } from "../engine/activation";
import { INITS, NORMS, RANGES, type Range } from "../explorer/settings";
import { INIT_NAMES, NORM_NAMES } from "../explorer/words";

export interface SliderControl {
  readonly kind: "slider";
  readonly label: string;
  readonly range: Range;
  readonly log: boolean;
  readonly whole: boolean;
}

export interface ChoiceControl {
  readonly kind: "choice";
  readonly label: string;
  readonly options: readonly string[];
  readonly names: Readonly<Record<string, string>>;
}

export interface FlagControl {
  readonly kind: "flag";
  readonly label: string;
}

/** All names, so that each connection or cell can be ticked. */
export interface SetControl {
  readonly kind: "connections" | "cells";
  readonly label: string;
}

export type Control = SliderControl | ChoiceControl | FlagControl | SetControl;

const whole = (label: string, range: Range): SliderControl => ({
  kind: "slider",
  label,
  range,
  log: false,
  whole: true,
});
const factor = (label: string, range: Range): SliderControl => ({
  kind: "slider",
  label,
  range,
  log: true,
  whole: false,
});
const amount = (label: string, range: Range): SliderControl => ({
  kind: "slider",
  label,
  range,
  log: false,
  whole: false,
});

export const CONTROLS = {
  connections: { kind: "connections", label: "Connections" },
  cells: { kind: "cells", label: "Cells" },
  depth: whole("Depth", { low: 1, high: 200 }),
  streams: whole("Streams", RANGES.streams),
  iterations: whole("Iterations of Sinkhorn", RANGES.iterations),
  gain: factor("Weights times", { low: 0.1, high: 100 }),
  spread: factor("Distance from the start", RANGES.spread),
  gateBias: amount("Bias of the gates", RANGES.gateBias),
  forgetBias: amount("Forget bias", RANGES.forgetBias),
  timeSteps: whole("Sequence length", RANGES.timeSteps),
  trainDepth: whole("Depth", { low: 2, high: 64 }),
  activation: {
    kind: "choice",
    label: "Activation",
    options: activationNames,
    names: Object.fromEntries(activationNames.map((name) => [name, name])),
  },
  init: {
    kind: "choice",
    label: "Initialisation",
    options: INITS.filter((one) => one !== "gaussian"),
    names: INIT_NAMES,
  },
  norm: { kind: "choice", label: "Normalisation", options: NORMS, names: NORM_NAMES },
  preActivation: { kind: "flag", label: "normalise and activate before the weights" },
} as const satisfies Record<string, Control>;
