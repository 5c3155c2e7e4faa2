/** The list of runs: which are shown, in which order. */

import { type Row, value } from "./api";
import type { Listing, Sort } from "./place";

const GRAVITY: Readonly<Record<string, number>> = { error: 0, warn: 1, unknown: 2, healthy: 3 };
const gravity = (row: Row): number => (row.verdict === null ? 4 : (GRAVITY[row.verdict] ?? 4));
const byName = new Intl.Collator("en", { numeric: true }).compare;

const ORDERS: Readonly<Record<Sort, (a: Row, b: Row) => number>> = {
  modified: (a, b) => b.modified - a.modified,
  name: (a, b) => byName(a.name, b.name),
  verdict: (a, b) => gravity(a) - gravity(b),
  steps: (a, b) => b.steps - a.steps,
  loss: (a, b) => compare(value(a.loss), value(b.loss)),
};

/** Numbers rising; what is none comes last. */
function compare(a: number, b: number): number {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
  return a === b ? 0 : a < b ? -1 : 1;
}

/** Every word of the text must be in the name, the title, the kind or the state. */
export function shown(runs: Iterable<Row>, listing: Listing): Row[] {
  const words = listing.text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...runs].filter((row) => {
    if (listing.verdict && row.verdict !== listing.verdict) return false;
    const text = `${row.name} ${row.title} ${row.kind} ${row.state}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const order = ORDERS[listing.sort];
  const turned = listing.reversed ? -1 : 1;
  return found.sort((a, b) => turned * order(a, b) || b.modified - a.modified || byName(a.name, b.name));
}
