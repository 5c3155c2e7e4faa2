/** From what the engine measured to lines, numbers for each connection, and a sentence that reads the picture. */

import type { ConnectionName } from "../engine/connections/index";
import type { Precision } from "../engine/matrix";
import { logPowers } from "../engine/theory";
import type { Series } from "../figures/series";
import { counted, short, shortExp } from "../page/number";
import type { Signals } from "./pool";
import { reason } from "./reasons";
import { colours, type Settings } from "./settings";
import { SHORT_NAMES } from "./words";

export interface Computed {
  readonly name: ConnectionName;
  readonly signals: Signals;
}

export type Quantity = "signal" | "gradient" | "update";

const SIGMOID_SLOPE = 0.25;
const LARGEST = { float32: "3.4×10³⁸", float64: "1.8×10³⁰⁸" };
const SMALLEST = { float32: "1.4×10⁻⁴⁵", float64: "4.9×10⁻³²⁴" };
/** An exact zero next to a value below this is one that left the range; the range ends below it. */
const NEARLY_ZERO = { float32: 1e-36, float64: 1e-300 };
const LOG_SMALLEST = Math.log(Number.MIN_VALUE); // of float64
/**
 * The logarithm of a gradient over many layers differs from one draw of weights to the next, and drifts, as depth over width:
 * of plain ReLU layers by a deviation of sqrt(5/4 depth/width) and a mean of -5/4 depth/width (Hanin 2018, arXiv 1801.03744).
 * Tanh, sigmoid and residual layers were measured to do less.
 */
const VARIANCE = 5 / 4;
const FARTHEST = 3; // deviations from the mean that one draw may have
const WIDE = 0.5; // depth over width below which finite width is not named

const places = (count: number, first = 0): number[] => Array.from({ length: count }, (_, at) => at + first);

/** The lines of a quantity: measured, predicted where theory covers it, and the textbook's reference. */
export function lines(quantity: Quantity, all: readonly Computed[], settings: Settings): Series[] {
  const palette = colours(settings.connections);
  const found: Series[] = [];
  for (const { name, signals } of all) {
    const own = { label: SHORT_NAMES[name], colour: palette.get(name) ?? "ref", style: "measured" as const };
    const predicted = { ...own, label: `${own.label}, predicted`, style: "predicted" as const, yields: true };
    const { measured, predicted: theory, update } = signals;
    const x = places(measured.signal.length);
    if (quantity === "update") {
      if (update) found.push({ ...own, x: places(update.length, 1), y: update });
    } else if (quantity === "signal") {
      found.push({ ...own, x, y: measured.signal });
      if (theory) found.push({ ...predicted, x, y: theory.signal });
    } else {
      found.push({ ...own, x, y: measured.gradient });
      const end = Math.log(measured.gradient.at(-1)!);
      if (theory) found.push({ ...predicted, x, y: theory.logGradient.map((log) => log + end), logs: true });
    }
  }
  if (quantity === "gradient" && settings.activation === "sigmoid" && all.length > 0) {
    const depth = Math.max(...all.map(({ signals }) => signals.measured.gradient.length)) - 1;
    const y = logPowers(SIGMOID_SLOPE, depth);
    found.push({ label: "0.25 per layer", colour: "ref", style: "reference", x: places(depth + 1), y, logs: true });
  }
  return found;
}

/** What the gradient does over depth, in numbers. */
export interface Decay {
  /** Natural logarithm of the factor that each layer multiplies the gradient by, on its way back; null for none. */
  readonly logRate: number | null;
  /** The same from theory. */
  readonly logPredicted: number | null;
  /** Logarithm of what the gradient is at `first`, over what theory says; null where one of them is missing. */
  readonly apart: number | null;
  /** The layer nearest to the input at which the gradient is neither zero nor infinite. */
  readonly first: number;
}

/** Layers count from 1: what their weights learn from is the gradient by what they return. */
export function decay({ measured, predicted }: Signals): Decay {
  const g = measured.gradient;
  const finite = measured.signal.every(Number.isFinite) && g.every(Number.isFinite);
  const depth = g.length - 1;
  const start = Math.min(1, depth - 1); // a single layer is measured from the input
  let first = start;
  while (first < depth && !(g[first] > 0 && Number.isFinite(g[first]))) first++;
  const rate = first < depth && finite ? (Math.log(g[first]) - Math.log(g[depth])) / (depth - first) : null;
  const logs = predicted?.logGradient;
  const logRate = rate !== null && Number.isFinite(rate) ? rate : null;
  return {
    logRate,
    logPredicted: logs ? (logs[start] - logs[depth]) / (depth - start) : null,
    apart: logRate !== null && logs ? logRate * (depth - first) - (logs[first] - logs[depth]) : null,
    first,
  };
}

export type Lost = "signal" | "underflow" | "dead" | "overflow" | "nan";

/** What went out of range on the way, if anything. */
export function lost({ measured }: Signals, { precision }: Settings): Lost | null {
  const { signal, gradient } = measured;
  if (signal.some(Number.isNaN) || gradient.some(Number.isNaN)) return "nan";
  if (!signal.every(Number.isFinite) || !gradient.every(Number.isFinite)) return "overflow";
  const nothing = signal.indexOf(0);
  if (nothing > 0 && ranOut(signal[nothing - 1], signal[nothing - 2], precision)) return "signal";
  const zero = gradient.lastIndexOf(0);
  if (zero < 0) return null;
  return ranOut(gradient[zero + 1], gradient[zero + 2], precision) ? "underflow" : "dead";
}

/** Whether the value that follows these two is below what the format holds, if it goes on as from the one to the other. */
function ranOut(last: number | undefined, before: number | undefined, precision: Precision): boolean {
  if (!last) return false;
  const expected = before ? last * (last / before) : last;
  return Math.min(last, expected) < NEARLY_ZERO[precision];
}

/** Of these the last gradient that is drawn is the output's own: the others change it on the way to their last layer. */
const AT_OUTPUT: readonly ConnectionName[] = ["plain", "residual"];

/** A sentence, two or three, that say what the picture shows of a connection, and why. */
export function reading({ name, signals }: Computed, settings: Settings): string {
  const label = SHORT_NAMES[name];
  const depth = signals.measured.gradient.length - 1;
  const { first, ...rates } = decay(signals);
  const what = lost(signals, settings);
  const { precision } = settings;
  if (what === "nan") return `${label}: numbers overflow, and what comes of them is not a number (NaN).`;
  if (what === "overflow") {
    return `${label}: numbers overflow: ${precision} holds nothing above ${LARGEST[precision]}.`;
  }
  const zeros = signals.measured.gradient.lastIndexOf(0);
  if (what === "dead") {
    return `${label}: below layer ${zeros + 1} the gradient is exactly zero: no unit lets anything through.`;
  }
  /** Whether float64 holds what has a logarithm, and changes it by as much a layer. */
  const other = (log: number, rate: number) =>
    precision === "float32" && log + rate * depth > LOG_SMALLEST ? " In float64 it can still be seen." : "";
  const smallest = `it is below ${SMALLEST[precision]}, the smallest number that ${precision} holds (underflow)`;
  if (what === "signal") {
    const { signal } = signals.measured;
    const from = signal.indexOf(0);
    const begins = Math.log(signal[0]);
    const rate = from > 1 ? (Math.log(signal[from - 1]) - begins) / (from - 1) : 0;
    const at = from < depth ? `From what layer ${from + 1} reads on` : "At the output";
    const back = zeros < 0 ? "" : ` Below layer ${zeros + 1} the gradient is exactly zero, too.`;
    return `${label}: ${at} the signal is exactly zero: ${smallest}.${other(begins, rate)}${back}`;
  }
  const perLayer = rateWords(rates, depth - first, settings.width);
  if (what === "underflow") {
    const where = zeros > 0 ? `From layer ${zeros} to the input` : "At the input";
    return `${label}: ${perLayer}. ${where} the gradient is exactly zero: ${smallest}.${other(Math.log(signals.measured.gradient[depth]), rates.logRate ?? 0)}`;
  }
  const log = (rates.logRate ?? 0) * (depth - first);
  const amount = Math.abs(log) < 1e-3 ? "what it is" : `${sizeWords(log)} what it is`;
  const end = AT_OUTPUT.includes(name) ? "the output" : "the last layer";
  const told = `${label}: at ${depth > 1 ? "layer 1" : "the input"} the gradient is ${amount} at ${end}: ${perLayer}.`;
  return `${told} ${reason(name, signals, settings)}`.trimEnd();
}

/** A sentence on the first step: how far it moves the first layer's weights and the last one's. */
export function updateReading({ name, signals: { update } }: Computed, { precision }: Settings): string {
  if (!update) return "";
  const label = SHORT_NAMES[name];
  if (!update.every(Number.isFinite)) return `${label}: the first step leaves the range of ${precision}.`;
  const last = update.length;
  const still = update.filter((one) => one === 0).length;
  if (still === last) return `${label}: the first step changes no weight.`;
  const at = (layer: number) => `${short(update[layer - 1], 3)} of their size at layer ${layer}`;
  const moved = `the first step moves the weights by ${last > 1 ? `${at(1)} and by ${at(last)}` : at(1)}`;
  if (still === 0) return `${label}: ${moved}.`;
  return `${label}: ${moved}. In ${counted(still, "layer")} no weight changes at all: the step is zero, or too small to be added in ${precision}.`;
}

function sizeWords(log: number): string {
  return log < 0 ? `${shortExp(log, 2)} of` : `${shortExp(log, 3)} times`;
}

/** A factor per layer; near 1 with a digit more, which is what counts over many layers. */
export function rateText(log: number): string {
  return `×\u00a0${shortExp(log, Math.abs(log) < 0.05 ? 4 : 3)}`;
}

function rateWords({ logRate, logPredicted, apart }: Omit<Decay, "first">, layers: number, width: number): string {
  const measured = logRate === null ? "no rate per layer can be measured" : `${rateText(logRate)} per layer`;
  if (logPredicted === null) return measured;
  const theory = rateText(logPredicted).slice(2);
  if (apart === null) return `${measured} (theory says ×\u00a0${theory})`;
  const ratio = layers / width;
  const deviation = Math.sqrt(VARIANCE * ratio);
  if (Math.abs(apart) <= deviation) return `${measured}, as predicted (${theory})`;
  const differs = `${measured}, where theory says ${theory}`;
  const [lowest, highest] = [-VARIANCE * ratio - FARTHEST * deviation, FARTHEST * deviation];
  if (ratio < WIDE || apart < lowest || apart > highest) return differs;
  return `${differs} for infinite width; at this depth, ${short(ratio, 2)} times the width, finite width can make such a difference`;
}
