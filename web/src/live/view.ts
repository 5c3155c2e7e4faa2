/** From what an address says to what is seen, and back. */

import { type Span, same, within } from "../figures/span";
import { isOver, type Summary } from "./api";
import type { Place } from "./place";

/**
 * The step behind the last one of a run.
 *
 * One that may go on is seen a little further: its last sample stands until the next, whose step nobody knows yet.
 */
function endOf({ state, steps, first_step, last_step, samples, has }: Summary): number {
  const made = has.includes("held_out") ? steps + 1 : steps; // held out losses are by the number of steps done
  if (last_step === null || first_step === null) return made;
  const apart = isOver({ state }) || samples < 2 ? 1 : Math.round((last_step - first_step) / (samples - 1));
  return Math.max(made, last_step + Math.max(1, apart));
}

/** All steps of the runs. */
export function stepsOf(runs: readonly Summary[]): Span {
  return { from: 0, to: Math.max(1, ...runs.map(endOf)) };
}

/** What is seen of the steps. */
export function seen(place: Place, limits: Span): Span {
  const from = place.from ?? limits.from;
  const to = place.to === null ? limits.to : place.to + 1;
  return within({ from, to: Math.max(to, from + 1) }, limits, 1);
}

/** What an address says of a view. An end that is the end of all is left out: a run that grows is then followed. */
export function written(x: Span, limits: Span): Pick<Place, "from" | "to"> {
  return { from: x.from === limits.from ? null : x.from, to: x.to === limits.to ? null : x.to - 1 };
}

/** The same of the layers. */
export function writtenDepth(y: Span, all: Span): Pick<Place, "first" | "last"> {
  return same(y, all) ? { first: null, last: null } : { first: y.from, last: y.to - 1 };
}
