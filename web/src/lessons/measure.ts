/** The number that a question asks for, computed by the engine when it is asked. */

import { activation } from "../engine/activation";
import type { ConnectionName } from "../engine/connections/index";
import type { PathLengths } from "../engine/paths";
import type { CellName } from "../engine/recurrent/cells";
import type { Memory } from "../engine/recurrent/memory";
import { away } from "../explorer/mixing";
import { decay } from "../explorer/picture";
import type { Signals } from "../explorer/pool";
import { cost, DEFAULTS, networkOptions, type Settings, type Tab } from "../explorer/settings";
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

/** How often random weights are drawn for an answer: odd numbers, so that one of them is in the middle. */
const [FEWEST, MOST] = [9, 99];
/** Of `cost`, for all draws of an answer: what a page computes in about half a second. */
const AFFORDED = 2 ** 23;

/** A number that depends on random weights: the middle one of several draws, and how far those next to it are. */
export interface Sample {
  readonly value: number;
  /** Between them lies the middle half of the draws, `inner` of them. */
  readonly low: number;
  readonly high: number;
  readonly inner: number;
  readonly draws: number;
  /** Of the draw that has the value, so that a figure can show it. */
  readonly seed: number;
}

/** What no random number is in. */
export const CERTAIN: readonly Ask["quantity"][] = ["slope", "reach"];
export const DRAWN_ONCE: readonly Ask["quantity"][] = [...CERTAIN, "loss", "lesion", "length"];

/** The same on every machine, so that everybody gets the same answer: as many as small networks allow. */
export function drawsOf(ask: Ask, chapter: Partial<Settings>): number {
  if (DRAWN_ONCE.includes(ask.quantity)) return 1;
  if (ask.quantity !== "kept" && ask.quantity !== "rate" && ask.quantity !== "carried") return FEWEST;
  const settings = settingsOf(chapter, ask.settings);
  const names = ask.over ? [ask.connection, ask.over] : [ask.connection];
  const each = names.reduce((sum, name) => sum + cost(networkOptions(settings, name)), 0);
  const odd = 2 * Math.floor(AFFORDED / each / 2) + 1;
  return Math.min(Math.max(odd, FEWEST), MOST);
}

export async function sample(ask: Ask, chapter: Partial<Settings>, lab: Lab): Promise<Sample> {
  const { seed: first } = settingsOf(chapter, ask.settings);
  const draws = drawsOf(ask, chapter);
  const found: { value: number; seed: number }[] = [];
  for (let draw = 0; draw < draws; draw++) {
    const seed = first + draw;
    found.push({ seed, value: await measure(ask, { ...chapter, seed }, lab) });
  }
  found.sort((a, b) => a.value - b.value);
  const middle = draws >> 1;
  const wider = draws >> 2;
  const [low, high] = [found[middle - wider].value, found[middle + wider].value];
  return { ...found[middle], low, high, inner: 2 * wider + 1, draws };
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
