/** Heat maps: what is asked for, and how the answer becomes cells. */

import { type Cells, INFINITE, indexOf, NAN, ZERO } from "../figures/cells";
import type { Span } from "../figures/span";
import { isOver, type Summary } from "./api";

/** What of a run is wanted, at most so many cells. */
export interface Question {
  readonly run: string;
  readonly signal: string;
  readonly x: Span;
  readonly y: Span;
  readonly columns: number;
  readonly rows: number;
  /** What changes when the run has grown within the stretch, or is another. */
  readonly version: string;
}

/** The server's answer (docs/serve.md): planes in base64, row by row. */
export interface HeatAnswer {
  readonly steps: readonly number[];
  readonly last_steps: readonly number[];
  readonly sites: readonly number[];
  readonly last_sites: readonly number[];
  readonly mean: string;
  readonly low: string;
  readonly high: string;
  readonly flags: string;
}

/** First and last step that a column stands for. */
export type Stretch = readonly [number, number];

/** Cells, with what each column stands for. */
export interface Heat extends Cells {
  readonly spans: readonly Stretch[];
}

const MARKS = ZERO | INFINITE | NAN; // of the server's flags; the others say what a cell holds beside numbers
const MOST = { columns: 1024, rows: 512 }; // of an answer

/** As many cells as there are pixels; a picture a few pixels wider asks for the same. */
export const upward = (pixels: number, most: number): number =>
  Math.min(most, 64 * Math.ceil(Math.max(pixels, 1) / 64));

/** So many cells of a stretch are asked for, where there are so many pixels. */
export function cellsOf(x: Span, y: Span, columns: number, rows: number): Pick<Question, "columns" | "rows"> {
  return {
    columns: Math.max(1, Math.min(upward(columns, MOST.columns), x.to - x.from)),
    rows: Math.max(1, Math.min(upward(rows, MOST.rows), y.to - y.from)),
  };
}

/**
 * What changes when a process has sampled more of a stretch: each writes for itself, and one may be behind.
 *
 * A run that was mended, that goes on from an earlier step, or that began anew in its folder comes to the same steps
 * again, with other samples.
 */
export const versionOf = ({ reached, rewritten, created }: Versioned, x: Span): string =>
  [reached.reduce((sum, step) => sum + Math.min(step, x.to), 0), rewritten, created].join(" ");

type Versioned = Pick<Summary, "reached" | "rewritten" | "created">;

export const key = (asked: Question): string =>
  [
    asked.run,
    asked.signal,
    asked.x.from,
    asked.x.to,
    asked.y.from,
    asked.y.to,
    asked.columns,
    asked.rows,
    asked.version,
  ].join(" ");

export function bytes(base64: string): Uint8Array {
  const text = atob(base64);
  const made = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) made[i] = text.charCodeAt(i);
  return made;
}

export function floats(base64: string): Float32Array {
  const held = bytes(base64);
  const view = new DataView(held.buffer);
  const made = new Float32Array(held.length >> 2);
  for (let i = 0; i < made.length; i++) made[i] = view.getFloat32(4 * i, true);
  return made;
}

/** Put the answer's cells in their places. The last column stands as long as the one before, or a step. */
export function heatOf(answer: HeatAnswer): Heat {
  const { steps, sites } = answer;
  const rows = Float64Array.of(...sites, (answer.last_sites.at(-1) ?? -1) + 1);
  const columns = Float64Array.of(...steps, end(answer));
  const made = {
    mean: floats(answer.mean),
    low: floats(answer.low),
    high: floats(answer.high),
    marks: bytes(answer.flags),
  };
  for (let i = 0; i < made.marks.length; i++) made.marks[i] &= MARKS;
  if (Object.values(made).some((held) => held.length !== sites.length * steps.length)) {
    throw new Error("The server's heat map has another size than it says.");
  }
  return { rows, columns, ...made, spans: steps.map((first, i) => [first, answer.last_steps[i]]) };
}

function end({ steps, last_steps }: HeatAnswer): number {
  if (steps.length === 0) return 0;
  const [last, before] = [steps[steps.length - 1], steps[steps.length - 2]];
  return Math.max(last_steps[steps.length - 1] + 1, before === undefined ? 0 : 2 * last - before);
}

/**
 * The same cells with the last sample of a run up to its end: no other came that would end its column.
 *
 * Of a run that goes on it is at least as wide as the one before, of one that is over no wider than there are steps.
 */
export function lasting(heat: Heat, run: Pick<Summary, "last_step" | "steps" | "state">): Heat {
  const last = heat.columns.length - 1;
  if (run.last_step === null || heat.spans.at(-1)?.[1] !== run.last_step) return heat;
  const end = Math.max(run.steps, run.last_step + 1, isOver(run) ? 0 : heat.columns[last]);
  if (end === heat.columns[last]) return heat;
  const columns = Float64Array.from(heat.columns);
  columns[last] = end;
  return { ...heat, columns };
}

/** The last step of which something is drawn. */
export const drawnTo = (layers: readonly Heat[]): number | null =>
  layers.reduce<number | null>((found, { spans }) => {
    const last = spans.at(-1)?.[1] ?? null;
    return last !== null && (found === null || last > found) ? last : found;
  }, null);

/** What stands at a place: of the finest layer that has it. */
export interface Standing {
  readonly sites: readonly [number, number];
  readonly span: Stretch;
  readonly mean: number;
  readonly low: number;
  readonly high: number;
  readonly marks: number;
}

export function standing(layers: readonly Heat[], step: number, site: number): Standing | null {
  for (let i = layers.length - 1; i >= 0; i--) {
    const one = layers[i];
    const [column, row] = [indexOf(one.columns, step), indexOf(one.rows, site)];
    if (column < 0 || row < 0) continue;
    const at = row * (one.columns.length - 1) + column;
    return {
      sites: [one.rows[row], one.rows[row + 1] - 1],
      span: one.spans[column],
      mean: one.mean[at],
      low: one.low[at],
      high: one.high[at],
      marks: one.marks[at],
    };
  }
  return null;
}

/** Sites in which two runs agree: the longest stretch of names that both have in the same order. */
export interface Agreement {
  readonly first: number;
  readonly other: number;
  readonly count: number;
}

export function agreement(a: readonly string[], b: readonly string[]): Agreement {
  const places = new Map(b.map((name, i) => [name, i]));
  let best: Agreement = { first: 0, other: 0, count: 0 };
  let start = 0;
  for (let i = 0; i < a.length; i++) {
    const place = places.get(a[i]);
    const goes = i > start && place !== undefined && place === places.get(a[i - 1])! + 1;
    if (!goes) start = i;
    if (place !== undefined && i - start + 1 > best.count) {
      best = { first: start, other: places.get(a[start])!, count: i - start + 1 };
    }
  }
  return best;
}

/** The same cells, counted from another site on. */
export function shifted(heat: Heat, by: number): Heat {
  return by === 0 ? heat : { ...heat, rows: Float64Array.from(heat.rows, (row) => row + by) };
}
