/** What is trained: networks that differ in their connection and depth alone. */

import type { ConnectionName } from "../../engine/connections/index";
import type { NetworkOptions } from "../../engine/network";
import type { OptimizerOptions } from "../../engine/optimise";
import type { Evaluation } from "../../engine/protocol";
import { listed, short } from "../../page/number";
import { connectionOptions, type Settings } from "../settings";
import { SHORT_NAMES } from "../words";

export const BATCH = 32;
export const SWEEP_DEPTHS = [2, 4, 8, 16, 32, 64] as const;
const REPORTS = 50; // of a training, about

export const every = (steps: number): number => Math.max(1, Math.round(steps / REPORTS));

/** `activation(norm(W x + b))` behind the connection, between a linear layer from the pixels and one to the classes. */
export function trainedNetwork(settings: Settings, name: ConnectionName, depth: number): NetworkOptions {
  return {
    depth,
    width: settings.trainWidth,
    activation: settings.trainActivation,
    norm: settings.trainNorm,
    connection: connectionOptions({ ...settings, depth }, name),
    init: { name: "he" },
    precision: settings.precision,
    seed: settings.seed,
    inputs: 64,
    classes: 10,
  };
}

export const trainedBy = (settings: Settings): OptimizerOptions => ({ name: "adamw", lr: settings.trainLr });

/** What makes networks that were trained before no longer those of the settings. */
export function keyOf(settings: Settings): string {
  const { trainWidth, trainActivation, trainNorm, trainLr, trainSteps, precision, seed } = settings;
  const own = [trainWidth, trainActivation, trainNorm, trainLr, trainSteps, precision, seed];
  const { streams, iterations, growth, blocks, gateBias, alpha } = settings;
  return JSON.stringify([...own, streams, iterations, growth, blocks, gateBias, alpha]);
}

export interface Report {
  readonly step: number;
  /** Means over the batches since the report before. */
  readonly trained: Evaluation;
  readonly heldOut: Evaluation;
}

export interface Swept {
  readonly name: ConnectionName;
  readonly depth: number;
  readonly last: Report;
}

export type Part = "trained" | "heldOut";

export const PARTS: Record<Part, string> = { trained: "the digits it trains on", heldOut: "held-out digits" };

/** With a space at which no line breaks. */
export const percent = (share: number): string => `${short(100 * share)}\u00a0%`;

const CHANCE = Math.log(10);
const LUCK = 0.15; // of 360 digits guessing knows 10 %, and more than this once in a thousand times

export interface Reported {
  readonly name: ConnectionName;
  readonly reports: readonly Report[];
}

/** The last step that all have reported, those aside which have reported none: side by side, one is behind another. */
export function together(runs: readonly Reported[]): number | undefined {
  const [first, ...others] = runs
    .map(({ reports }) => reports.map(({ step }) => step))
    .filter(({ length }) => length > 0);
  return first?.findLast((step) => others.every((steps) => steps.includes(step)));
}

/** One sentence on what trainings side by side have come to. */
export function reading(runs: readonly Reported[], depth: number): string {
  const step = together(runs);
  const ended = runs.flatMap(({ name, reports }) => {
    const last = reports.findLast((report) => step === undefined || report.step === step);
    return last ? [{ name: SHORT_NAMES[name], last }] : [];
  });
  if (ended.length === 0) return "";
  const told = ended.map(({ name, last: { step: own, trained, heldOut } }) => {
    const loss = Number.isFinite(trained.loss) ? short(trained.loss) : "no finite number";
    const after = step === undefined ? `, after ${short(own)} steps,` : "";
    return `${name}${after} has a training loss of ${loss} and knows ${percent(heldOut.accuracy)} of the held-out digits`;
  });
  const lost = ended
    .filter(({ last }) => !(last.trained.loss < 0.97 * CHANCE || last.heldOut.accuracy > LUCK))
    .map(({ name }) => name);
  const nothing = lost.length
    ? ` Guessing has ${short(CHANCE)} and 10 %: ${listed(lost)} ${lost.length > 1 ? "have" : "has"} learned nothing yet.`
    : "";
  const after = step === undefined ? "" : ` after ${short(step)} steps,`;
  return `At depth ${depth},${after} ${listed(told)}.${nothing}`;
}

/** One sentence on each connection: where its training loss is least, and what the deepest network has. */
export function sweepReading(swept: readonly Swept[]): string[] {
  const names = [...new Set(swept.map(({ name }) => name))];
  return names.flatMap((name) => {
    const own = swept.filter((one) => one.name === name).sort((a, b) => a.depth - b.depth);
    const deepest = own.at(-1)!;
    if (own.length < 2) return [];
    const loss = ({ last }: Swept) =>
      Number.isFinite(last.trained.loss) ? last.trained.loss : Number.POSITIVE_INFINITY;
    const best = own.reduce((least, one) => (loss(one) < loss(least) ? one : least));
    const factor = loss(deepest) / loss(best);
    const end = `${SHORT_NAMES[name]}: least training loss ${short(loss(best))} at depth ${best.depth}`;
    if (best === deepest || factor < 2) return [`${end}; at depth ${deepest.depth} it is ${short(loss(deepest))}.`];
    return [
      `${end}; at depth ${deepest.depth} it is ${short(loss(deepest))}, ${short(factor)} times as much, on the digits that it trains on: degradation.`,
    ];
  });
}

/** The middle one; of an even number the mean of the two. */
export function median(values: Float64Array): number {
  const sorted = values.toSorted();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** The part of all paths that pass each number of branches. */
export function binomialShares(depth: number): Float64Array {
  const shares = new Float64Array(depth + 1);
  shares[0] = 2 ** -depth;
  for (let k = 1; k <= depth; k++) shares[k] = (shares[k - 1] * (depth - k + 1)) / k;
  return shares;
}

/** Lengths between which the central part lies; as much is left out on each side. */
export function central(shares: Float64Array, part: number): [number, number] {
  const tail = (1 - part) / 2;
  let below = 0;
  let [low, high] = [0, shares.length - 1];
  for (let length = shares.length - 1, above = 0; length >= 0; length--) {
    above += shares[length];
    if (above > tail) {
      high = length;
      break;
    }
  }
  for (let length = 0; length < shares.length; length++) {
    below += shares[length];
    if (below > tail) {
      low = length;
      break;
    }
  }
  return [low, high];
}
