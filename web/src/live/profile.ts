/** Lines through a heat map: by layer at a step, and over steps at a layer. */

import { type Cells, INFINITE, NAN, ZERO } from "../figures/cells";
import type { Colour, Series } from "../figures/series";
import type { Heat, Stretch } from "./heat";

interface Named {
  readonly label: string;
  readonly colour: Colour;
  readonly style?: Series["style"];
}

/** A natural logarithm as figures of lines take it; null where nothing was measured. */
function log(mean: number, marks: number): number | null {
  if (marks & INFINITE) return Number.POSITIVE_INFINITY;
  if (marks & NAN) return Number.NaN;
  if (!Number.isNaN(mean)) return mean * Math.LN10;
  return marks & ZERO ? Number.NEGATIVE_INFINITY : null;
}

function series(named: Named, places: ArrayLike<number>, cells: Cells, index: (i: number) => number): Series {
  const [x, y]: [number[], number[]] = [[], []];
  for (let i = 0; i < places.length; i++) {
    const held = log(cells.mean[index(i)], cells.marks[index(i)]);
    if (held === null) continue;
    x.push(places[i]);
    y.push(held);
  }
  return { label: named.label, colour: named.colour, style: named.style ?? "measured", x, y, logs: true };
}

/** A column of cells by layer. */
export function byLayer(named: Named, cells: Cells, column = 0): Series {
  const count = cells.columns.length - 1;
  return series(named, Array.from(cells.rows).slice(0, -1), cells, (i) => i * count + column);
}

/** A row of cells over steps. */
export function overSteps(named: Named, cells: Cells, row = 0): Series {
  const count = cells.columns.length - 1;
  return series(named, Array.from(cells.columns).slice(0, -1), cells, (i) => row * count + i);
}

/** What lines by layer are of where nothing was chosen. */
export interface Rest {
  readonly span: Stretch;
  /** The last column, where another one is shown in its place; null where it is the last one that is shown. */
  readonly passed: Stretch | null;
  /** Whether the last column holds what is not finite; otherwise it holds no number at all. */
  readonly broken: boolean;
}

/**
 * The last column before `end` in which all maps are finite.
 *
 * The last one where there is none such, null without maps or columns before that.
 */
export function restOf(maps: readonly Heat[], end = Number.POSITIVE_INFINITY): Rest | null {
  const [first, ...others] = maps;
  if (!first) return null;
  const after = first.spans.findIndex(([step]) => step >= end);
  const count = after < 0 ? first.spans.length : after;
  if (count === 0) return null;
  const alike = [first, ...others.filter(({ spans }) => spans.length === first.spans.length)];
  const last = first.spans[count - 1];
  for (let column = count - 1; column >= 0; column--) {
    if (alike.every((map) => state(map, column) === "finite")) {
      const passed = column === count - 1 ? null : last;
      return { span: first.spans[column], passed, broken: alike.some((map) => state(map, count - 1) === "broken") };
    }
  }
  return { span: last, passed: null, broken: false };
}

function state(map: Cells, column: number): "finite" | "broken" | "empty" {
  const [rows, count] = [map.rows.length - 1, map.columns.length - 1];
  let known = false;
  for (let row = 0; row < rows; row++) {
    const at = row * count + column;
    if (map.marks[at] & (INFINITE | NAN)) return "broken";
    known ||= !Number.isNaN(map.mean[at]) || (map.marks[at] & ZERO) !== 0;
  }
  return known ? "finite" : "empty";
}
