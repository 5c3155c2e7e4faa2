/** How runs are said: signs, times and numbers of the list. */

import { short } from "../page/number";
import { type Numeric, type Row, value } from "./api";

export const SIGNS: Readonly<Record<string, string>> = { healthy: "✓", warn: "!", error: "✕", unknown: "?" };

/** What verdicts, and the severity of findings, are called; as in `levada._names`, which the command line says. */
export const VERDICT_WORDS: Readonly<Record<string, string>> = {
  healthy: "healthy",
  warn: "warning",
  error: "error",
  unknown: "not judged",
};

export const SEVERITY_WORDS: Readonly<Record<string, string>> = { error: "error", warn: "warning", info: "note" };

/** Signs of how claims of a study ended; as in the report. */
export const DECIDED_SIGNS: Readonly<Record<string, string>> = {
  held: "✓",
  "not held": "✕",
  "not held, corrected": "≠",
  "not decided": "?",
};

/** A number of the server in words. */
export const said = (told: Numeric | undefined): string =>
  told === null || told === undefined ? "—" : short(value(told));

/** A logarithm to base 10 as the number that it is of. */
export function power(log: number, digits = 3): string {
  if (Number.isNaN(log)) return "—";
  if (Math.abs(log) < 300) return short(10 ** log, digits);
  const exponent = Math.floor(log);
  return `${(10 ** (log - exponent)).toPrecision(digits)}e${exponent}`;
}

const UNITS: readonly (readonly [number, string])[] = [
  [86_400, "day"],
  [3_600, "hour"],
  [60, "minute"],
];

/** How long ago a time was, in seconds since 1970. */
export function ago(time: number, now: number): string {
  const passed = Math.max(0, now - time);
  for (const [size, word] of UNITS) {
    const count = Math.floor(passed / size);
    if (count >= 1) return `${count} ${word}${count === 1 ? "" : "s"} ago`;
  }
  return passed < 10 ? "now" : `${Math.floor(passed)} seconds ago`;
}

const TIME = { dateStyle: "medium", timeStyle: "medium" } as const;

/** A time in the reader's own zone, for who wants it exactly. */
export const exactly = (time: number): string => new Date(1000 * time).toLocaleString(undefined, TIME);

/** Names without the parts, between points, that all of them begin and end with. */
export function bareNames(names: readonly string[]): string[] {
  const parts = names.map((name) => name.split("."));
  const least = Math.min(...parts.map((one) => one.length), names.length ? Number.POSITIVE_INFINITY : 1) - 1;
  const differ = (at: (one: readonly string[]) => string | undefined) => new Set(parts.map(at)).size > 1;
  let first = 0;
  while (first < least && !differ((one) => one[first])) first++;
  let behind = 0;
  while (behind < least - first && !differ((one) => one.at(-1 - behind))) behind++;
  return parts.map((one) => one.slice(first, one.length - behind).join("."));
}

/** What begins a line. */
export const capital = (words: string): string => words.slice(0, 1).toUpperCase() + words.slice(1);

/** What a shell takes as one word. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** A run's name, with the folder that it lies in where the name alone would not tell it from others. */
export const called = (row: Pick<Row, "name" | "title">): string => (row.name === "." ? row.title || "." : row.name);
