/** The number that a question asks for, computed by the engine when it is asked. */

import { activation } from "../engine/activation";
import type { ConnectionName } from "../engine/connections/index";
import type { PathLengths } from "../engine/paths";
import type { CellName } from "../engine/recurrent/cells";
import type { Memory } from "../engine/recurrent/memory";
import { away } from "../explorer/mixing";
import { decay } from "../explorer/picture";
import type { Signals } from "../explorer/pool";
import { DEFAULTS, type Settings, type Tab } from "../explorer/settings";
import { median, type Report } from "../explorer/train/plan";
import { reach } from "./reach";
import type { Ask } from "./types";

/** A trained network, and what became of it without each layer in turn. */
export interface Trained {
  readonly name: "plain" | "residual";
  readonly reports: readonly Report[];
  /** Accuracy on held-out digits, whole and without each layer. */
  readonly whole: number;
  readonly without: Float64Array;
  readonly paths: PathLengths | null;
}

/** Who computes: workers on the page, the engine itself in tests. */
export interface Lab {
  signals(settings: Settings, name: ConnectionName): Promise<Signals>;
  memory(settings: Settings, cell: CellName): Promise<Memory>;
  trained(settings: Settings, name: Trained["name"]): Promise<Trained>;
}

/** What every lesson starts from. */
export const START: Partial<Settings> = { precision: "float64" };

/** Of a question: the lesson's settings, the chapter's, and its own, the later over the earlier. */
export function settingsOf(chapter: Partial<Settings>, part: Partial<Settings> = {}): Settings {
  return { ...DEFAULTS, ...START, ...chapter, ...part };
}

/** How often random weights are drawn for an answer: odd, so that one of them is in the middle. */
export const DRAWS = 9;
const WIDER = 2; // places from the middle: five of nine are not farther

/** A number that depends on random weights: the middle one of several draws, and how far those next to it are. */
export interface Sample {
  readonly value: number;
  /** Between them lie 2 `WIDER` + 1 of the draws. */
  readonly low: number;
  readonly high: number;
  /** Of the draw that has the value, so that a figure can show it. */
  readonly seed: number;
}

/** What no random number is in. */
export const CERTAIN: readonly Ask["quantity"][] = ["slope", "reach"];
export const DRAWN_ONCE: readonly Ask["quantity"][] = [...CERTAIN, "loss", "lesion", "length"];

export async function sample(ask: Ask, chapter: Partial<Settings>, lab: Lab): Promise<Sample> {
  const { seed: first } = settingsOf(chapter, ask.settings);
  const found: { value: number; seed: number }[] = [];
  for (let draw = 0; draw < (DRAWN_ONCE.includes(ask.quantity) ? 1 : DRAWS); draw++) {
    const seed = first + draw;
    found.push({ seed, value: await measure(ask, { ...chapter, seed }, lab) });
  }
  found.sort((a, b) => a.value - b.value);
  const middle = found.length >> 1;
  const [low, high] = [Math.max(0, middle - WIDER), Math.min(found.length - 1, middle + WIDER)];
  return { ...found[middle], low: found[low].value, high: found[high].value };
}

export async function measure(ask: Ask, chapter: Partial<Settings>, lab: Lab): Promise<number> {
  const settings = settingsOf(chapter, ask.settings);
  switch (ask.quantity) {
    case "slope":
      return steepest(settings);
    case "reach":
      return reach(ask.taps, ask.distances);
    case "kept":
    case "rate":
    case "carried": {
      const { quantity, connection, over } = ask;
      const value = ofSignals(quantity, await lab.signals(settings, connection));
      return over ? value / ofSignals(quantity, await lab.signals(settings, over)) : value;
    }
    case "horizon":
      return (await lab.memory(settings, ask.cell)).horizon;
    case "gain":
      return away(settings)[ask.kind].compositeForwardGain.at(-1)!;
    case "rows":
    case "columns": {
      const { compositeForwardGain: forward, compositeBackwardGain: backward } = away(settings).manifold;
      return Math.abs((ask.quantity === "rows" ? forward.at(-1)! : backward[0]) - 1);
    }
    case "loss":
    case "lesion":
    case "length":
      return ofTrained(ask.quantity, await lab.trained(settings, ask.connection));
  }
}

function ofSignals(quantity: "kept" | "rate" | "carried", signals: Signals): number {
  const { signal, gradient } = signals.measured;
  if (quantity === "kept") return gradient[1] / gradient.at(-1)!;
  if (quantity === "carried") return signal.at(-1)! / signal[0];
  return Math.exp(decay(signals).logRate ?? Number.NaN);
}

function ofTrained(quantity: "loss" | "lesion" | "length", { reports, whole, without, paths }: Trained): number {
  if (quantity === "loss") return reports.at(-1)!.trained.loss;
  if (quantity === "length") return paths?.mean ?? Number.NaN;
  return 100 * median(without.map((accuracy) => whole - accuracy));
}

export interface Neurons {
  readonly value: number;
  readonly slope: number;
}

/** `depth` neurons in a row, each `phi(gain u)`: what comes out for an x, and the slope by it. */
export function neurons({ activation: name, gain, depth }: Settings, x: number): Neurons {
  const phi = activation(name);
  let [value, slope] = [x, 1];
  for (let layer = 0; layer < depth; layer++) {
    slope *= gain * phi.slope(gain * value);
    value = phi.value(gain * value);
  }
  return { value, slope };
}

export const REACH = 6;
export const POINTS = Array.from({ length: 241 }, (_, at) => (at - 120) / 20);

function steepest(settings: Settings): number {
  return Math.max(...POINTS.map((x) => Math.abs(neurons(settings, x).slope)));
}

/** Where the explorer shows the same; null where it does not. */
export function tabOf({ quantity }: Ask): Tab | null {
  if (quantity === "reach") return null;
  if (quantity === "horizon") return "time";
  if (quantity === "gain" || quantity === "rows" || quantity === "columns") return "mixing";
  return quantity === "loss" || quantity === "lesion" || quantity === "length" ? "train" : "depth";
}
