/** Lines through a heat map: by layer at a step, and over steps at a layer. */

import { type Cells, INFINITE, NAN, ZERO } from "../figures/cells";
import type { Colour, Series } from "../figures/series";

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
