/** Curves over steps as the server bins them, and beside each other as a figure needs them. */

import { grouped } from "../page/number";
import { value } from "./api";

/** A series of the server's answer: an entry a bin of neighbouring steps. */
export interface Binned {
  readonly first: readonly number[];
  readonly last: readonly number[];
  readonly low: readonly (number | null)[];
  readonly mean: readonly (number | null)[];
  readonly high: readonly (number | null)[];
  readonly count: readonly number[];
  readonly nonfinite: readonly number[];
}

/** The losses of a run. */
export interface Losses {
  readonly training: Binned;
  readonly held_out: Binned;
  /** The same as `training`, apart, where optimizers that take turns have losses of their own; else empty. */
  readonly by_optimizer: readonly { readonly name: string; readonly bins: Binned }[];
}

export interface Curve {
  readonly label: string;
  /** Number of the palette's colour. */
  readonly colour: 0 | 1 | 2 | 3 | 4 | 5 | 6;
  readonly dashed: boolean;
  readonly x: readonly number[];
  /** First and last step of each bin. */
  readonly spans: readonly (readonly [number, number])[];
  readonly low: readonly number[];
  readonly mean: readonly number[];
  readonly high: readonly number[];
  /** Whether a bin holds several losses. */
  readonly merged: boolean;
  /** How many losses are NaN or infinite, and not drawn. */
  readonly broken: number;
}

export function curve(binned: Binned, label: string, colour: Curve["colour"], dashed: boolean): Curve {
  return {
    label,
    colour,
    dashed,
    x: binned.first.map((first, i) => Math.round((first + binned.last[i]) / 2)),
    spans: binned.first.map((first, i) => [first, binned.last[i]] as const),
    low: binned.low.map(value),
    mean: binned.mean.map(value),
    high: binned.high.map(value),
    merged: binned.count.some((count) => count > 1),
    broken: binned.nonfinite.reduce((all, one) => all + one, 0),
  };
}

/**
 * The curves of a run: its loss, or one of each optimizer that has losses of its own, and what is held out.
 *
 * Beside another run, a run's colour is that of its place, and its name is said.
 */
export function curvesOf({ training, held_out, by_optimizer }: Losses, run = "", place: 0 | 1 = 0): Curve[] {
  const apart = by_optimizer.map(({ name, bins }) => [`loss of ${name}`, bins, false] as const);
  const losses = apart.length > 0 ? apart : [["loss", training, false] as const];
  return [...losses, ["held out", held_out, true] as const]
    .filter(([, one]) => one.first.length > 0)
    .map(([words, one, second], i) => {
      const colour = run ? (second ? place : 2 * i + place) : second ? losses.length : i;
      return curve(one, run ? `${words}, ${run}` : words, (colour % 7) as Curve["colour"], second && run !== "");
    });
}

/** Steps of any curve, rising, and each curve's numbers there: null where it has none, and where it is not finite. */
export function aligned(curves: readonly Curve[]): { x: number[]; columns: (number | null)[][] } {
  const x = [...new Set(curves.flatMap((one) => [...one.x]))].sort((a, b) => a - b);
  const place = new Map(x.map((step, i) => [step, i]));
  const columns = curves.flatMap((one) =>
    [one.mean, one.low, one.high].map((values) => {
      const column = new Array<number | null>(x.length).fill(null);
      values.forEach((held, i) => {
        column[place.get(one.x[i])!] = Number.isFinite(held) ? held : null;
      });
      return column;
    }),
  );
  return { x, columns };
}

const WIDE = 100;

/**
 * Why the logarithm of losses is drawn, as in the report; "" where it is not. One spike would press all others into a
 * line where nine in ten lie within a tenth of the range, and take twice the share of a logarithmic axis, or more.
 */
export function whyLogarithmic(curves: readonly Curve[]): string {
  const [lows, means, highs] = (["low", "mean", "high"] as const).map((name) =>
    curves.flatMap((one) => one[name].filter(Number.isFinite)).sort((a, b) => a - b),
  );
  const least = Math.min(lows[0] ?? Number.NaN, means[0] ?? Number.NaN);
  const most = Math.max(highs.at(-1) ?? Number.NaN, means.at(-1) ?? Number.NaN);
  if (!(least > 0 && most > least)) return "";
  if (means[means.length - 1] > WIDE * means[0]) return `the largest loss is more than ${WIDE} times the smallest`;
  const skipped = Math.floor(means.length / 20);
  const [low, high] = [means[skipped], means[means.length - 1 - skipped]];
  const share = (high - low) / (most - least);
  if (share < 1 / 10 && Math.log(high / low) >= 2 * share * Math.log(most / least)) {
    return "nine in ten losses lie within a tenth of the range";
  }
  return "";
}

/** Of which steps an entry is: the mean of several is not that of one. */
export function when([first, last]: readonly [number, number]): string {
  return first === last ? `step ${grouped(first)}` : `steps ${grouped(first)} to ${grouped(last)}`;
}

/** The entry whose step is nearest. */
export function nearest(x: readonly number[], step: number): number {
  let [low, high] = [0, x.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= step) low = middle;
    else high = middle;
  }
  return high > low && x[high] - step < step - x[low] ? high : low;
}
