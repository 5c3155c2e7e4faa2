/** Axes: where a value stands, and which ticks are worth a label. As in the report's figures. */

import { scaleLinear } from "d3-scale";
import { short, superscript } from "../page/number";
import type { AxisSpec, Edge, Series } from "./series";

export interface Tick {
  /** Between 0 and 1. */
  readonly at: number;
  readonly label: string;
}

export interface Axis {
  readonly spec: AxisSpec;
  readonly ticks: readonly Tick[];
  /** The place between 0 and 1 (outside of it beyond the axis' ends), or the edge at which the value is drawn. */
  place(value: number, isLog?: boolean): number | Edge;
  /** The value that stands at a place between 0 and 1. */
  valueAt(place: number): number;
}

const STEPS = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500];
const LEAST_DECADES = 12; // so many a reference may always take

/** The axis' number for a value: itself, or its logarithm to base 10. */
function position(value: number, log: boolean, isLog: boolean): number | Edge {
  if (Number.isNaN(value)) return "nan";
  if (isLog) {
    if (value === Number.NEGATIVE_INFINITY) return "zero";
    return value === Number.POSITIVE_INFINITY ? "above" : value / Math.LN10;
  }
  if (!Number.isFinite(value)) return value > 0 ? "above" : "below";
  if (!log) return value;
  if (value > 0) return Math.log10(value);
  return value === 0 ? "zero" : "below";
}

function extent(series: readonly Series[], log: boolean): [number, number] | null {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const { y, logs = false } of series) {
    for (let at = 0; at < y.length; at++) {
      const found = position(y[at], log, logs);
      if (typeof found !== "number") continue;
      low = Math.min(low, found);
      high = Math.max(high, found);
    }
  }
  return low <= high ? [low, high] : null;
}

/** What both have, but references no more than twice the span of what was measured: they would flatten it. */
function domain(series: readonly Series[], log: boolean): [number, number] {
  const own = extent(
    series.filter(({ style }) => style !== "reference"),
    log,
  );
  const references = extent(
    series.filter(({ style }) => style === "reference"),
    log,
  );
  if (!own || !references) return own ?? references ?? (log ? [-1, 1] : [0, 1]);
  const room = Math.max(own[1] - own[0], log ? LEAST_DECADES : 0);
  return [
    Math.min(own[0], Math.max(references[0], own[0] - room)),
    Math.max(own[1], Math.min(references[1], own[1] + room)),
  ];
}

function made(spec: AxisSpec, low: number, high: number, ticks: readonly [number, string][]): Axis {
  const log = spec.scale === "log";
  const scale = scaleLinear([low, high], [0, 1]); // log: of logarithms
  return {
    spec,
    ticks: ticks.map(([at, label]) => ({ at: scale(at), label })),
    place(value, isLog = false) {
      const found = position(value, log, isLog);
      return typeof found === "number" ? scale(found) : found;
    },
    valueAt(place) {
      const found = scale.invert(place);
      return log ? 10 ** found : found;
    },
  };
}

/** An axis that holds all values that have a place on it. */
export function axisOf(spec: AxisSpec, series: readonly Series[], count = 6): Axis {
  const [low, high] = domain(series, spec.scale === "log");
  return spec.scale === "log" ? logAxis(spec, low, high, count) : linearAxis(spec, low, high, count);
}

const WIDE = 30; // so many times the first x is the last where most of a linear axis would be empty

/** How an axis from one x to another is best divided. */
export const scaleOver = (low: number, high: number): "linear" | "log" =>
  low > 0 && high > WIDE * low ? "log" : "linear";

/** From the first x to the last. */
export function xAxisOf(spec: AxisSpec, low: number, high: number, count = 8): Axis {
  if (spec.scale === "log" && low > 0) return logXAxis(spec, low, high, count);
  const room = high > low ? 0 : 0.5;
  const scale = scaleLinear([low - room, high + room], [0, 1]);
  const ticks = scale.ticks(count).filter((tick) => !spec.whole || Number.isInteger(tick));
  return made(
    spec,
    low - room,
    high + room,
    ticks.map((tick) => [tick, short(tick)]),
  );
}

/** Without room at its ends, and with labels in 1, 2, 5 where they have room, else fewer of them. */
function logXAxis(spec: AxisSpec, least: number, most: number, count: number): Axis {
  const [low, high] = [Math.log10(least), Math.log10(most)];
  const room = high > low ? 0 : 0.1;
  const within = (factors: readonly number[]): number[] => {
    const found: number[] = [];
    for (let exponent = Math.floor(low); exponent <= Math.ceil(high); exponent++) {
      for (const factor of factors) found.push(Number(`${factor}e${exponent}`));
    }
    return found.filter((tick) => tick >= least && tick <= most && (!spec.whole || Number.isInteger(tick)));
  };
  const kinds = [[1, 2, 5], [1, 3], [1]].map(within);
  const ticks = kinds.find((kind) => kind.length <= count) ?? kinds[kinds.length - 1];
  return made(
    spec,
    low - room,
    high + room,
    ticks.map((tick) => [Math.log10(tick), short(tick)]),
  );
}

function linearAxis(spec: AxisSpec, low: number, high: number, count: number): Axis {
  const room = high > low ? 0.04 * (high - low) : Math.max(Math.abs(low) / 2, 0.5);
  const [from, to] = [low - room, high + room];
  const ticks = scaleLinear([from, to], [0, 1]).ticks(count);
  return made(
    spec,
    from,
    to,
    ticks.filter((tick) => !spec.whole || Number.isInteger(tick)).map((tick) => [tick, round(tick)]),
  );
}

function logAxis(spec: AxisSpec, least: number, most: number, count: number): Axis {
  let [low, high] = [least, most];
  if (high - low > 3) {
    [low, high] = [Math.floor(low + 0.02), Math.ceil(high - 0.02)];
    const every = STEPS.find((step) => (high - low) / step <= count) ?? 1000;
    const ticks: [number, string][] = [];
    for (let exponent = Math.ceil(low / every) * every; exponent <= high; exponent += every) {
      ticks.push([exponent, power(exponent)]);
    }
    return made(spec, low, high, ticks);
  }
  if (high - low < 0.05) [low, high] = [low - 0.15, high + 0.15];
  const room = 0.06 * (high - low);
  [low, high] = [low - room, high + room];
  const factors = high - low > 2.2 ? [1, 3] : [1, 2, 5];
  let ticks: [number, string][] = [];
  for (let exponent = Math.floor(low); exponent <= Math.ceil(high); exponent++) {
    for (const factor of factors) {
      const at = exponent + Math.log10(factor);
      if (at >= low && at <= high) ticks.push([at, product(factor, exponent)]);
    }
  }
  if (ticks.length < 3 && Math.abs(low) < 300 && Math.abs(high) < 300) {
    const between = scaleLinear([10 ** low, 10 ** high], [0, 1]).ticks(count - 1);
    ticks = between.filter((tick) => tick > 0).map((tick) => [Math.log10(tick), round(tick)]);
  }
  return made(spec, low, high, ticks);
}

/** A tick is a round number: of 1.20000×10⁻⁷ the zeros say nothing. */
const round = (tick: number): string => short(tick, 6).replace(/\.?0+×/, "×");

function power(exponent: number): string {
  return exponent === 0 ? "1" : exponent === 1 ? "10" : superscript(exponent);
}

function product(factor: number, exponent: number): string {
  if (exponent >= -3 && exponent < 5) return short(Number(`${factor}e${exponent}`));
  return factor === 1 ? superscript(exponent) : `${factor}×${superscript(exponent)}`;
}
