/** What an address asks for that its runs do not have: what is shown instead, and the sentences that say so. */

import type { Span } from "../figures/span";
import { counted, grouped, listed } from "../page/number";
import type { Summary } from "./api";
import { type Agreement, agreement } from "./heat";
import type { Place } from "./place";
import { seen } from "./view";

/** Layers that are seen: beside another run those that both have; if there are none, each run's own. */
export interface Depth {
  readonly agreed: Agreement;
  /** Of this run's sites. */
  readonly rows: Span;
}

export function depthOf(summary: Summary, other: Summary | null): Depth {
  const names = ({ sites }: Summary) => sites.map((site) => site.name);
  const count = summary.sites.length;
  if (!other) return { agreed: { first: 0, other: 0, count }, rows: { from: 0, to: count } };
  const agreed = agreement(names(summary), names(other));
  const [first, depth] = agreed.count > 0 ? [agreed.first, agreed.count] : [0, count];
  return { agreed, rows: { from: first, to: first + depth } };
}

/** The signals of the two maps where the address names none. */
export function usualSignals({ signals }: Pick<Summary, "signals">): readonly (string | undefined)[] {
  const names = signals.map((one) => one.name);
  return ["gradient_rms", "signal_rms"].map((name, i) => (names.includes(name) ? name : names[i]));
}

/** The layers that are seen. */
export function seenDepth(place: Place, rows: Span): Span {
  return {
    from: Math.min(Math.max(place.first ?? rows.from, rows.from), rows.to - 1),
    to: Math.min(Math.max((place.last ?? rows.to - 1) + 1, rows.from + 1), rows.to),
  };
}

export interface Fitted {
  /** The place with what the runs have. */
  readonly place: Place;
  /** What the address asks for beside it, and what is shown instead. */
  readonly told: readonly string[];
}

/** The run of the address, and what is known of it and of the one beside it. */
export interface Held {
  readonly summary: Summary;
  readonly other: Summary | null;
  readonly steps: Span;
  readonly rows: Span;
}

export function fitted(place: Place, held: Held): Fitted {
  const told: string[] = [];
  let now = place;
  const maps = held.summary.has.includes("heat");
  const curves = held.summary.has.some((one) => one === "loss" || one === "held_out");
  if (maps) now = { ...now, signals: signalsOf(place, held, told), layer: layerOf(place, held, told) };
  else unused(place, curves, told);
  if (maps || curves) now = { ...now, step: stepOf(place, held, told) };
  return { place: now, told };
}

const ends = (span: Span): string => `${grouped(span.from)} to ${grouped(span.to - 1)}`;
const made = ({ summary, other }: Held): string => {
  const running = [summary, other].some((one) => one?.state === "running") ? " so far" : "";
  return `${other ? "The runs have" : "The run has"} ${counted(Math.max(summary.steps, other?.steps ?? 0), "step")}${running}`;
};
const layers = ({ other, rows }: Held): string =>
  `${other ? "The layers that are compared" : "Its layers"} are ${ends(rows)}`;

/** What has nothing to choose where a run keeps no numbers by layer and step. */
function unused({ signals, layer, first, last, ...place }: Place, curves: boolean, told: string[]): void {
  const maps = { signal: signals[0], second: signals[1], first, last, layer };
  const asked = { ...maps, ...(curves ? {} : { from: place.from, to: place.to, step: place.step }) };
  const words = Object.entries(asked).flatMap(([name, value]) => (value === null ? [] : [`\`${name}=${value}\``]));
  if (words.length === 0) return;
  told.push(
    `This run has no maps by layer and step, where the address could choose ${listed(words)}: all of it is shown.`,
  );
}

function signalsOf(place: Place, { summary, other }: Held, told: string[]): Place["signals"] {
  const label = (name = "") => summary.signals.find((one) => one.name === name)?.label ?? name;
  const known = (name: string | null) => summary.signals.some((one) => one.name === name);
  for (const [at, name] of place.signals.entries()) {
    if (name === null || known(name) || (at === 1 && other)) continue; // beside another run there is one signal
    const shown = label(usualSignals(summary)[at]);
    told.push(`The address asks for the signal \`${name}\`, which ${summary.name} does not keep: shown is “${shown}”.`);
  }
  const [first, second] = place.signals;
  return [known(first) ? first : null, known(second) ? second : null];
}

function layerOf(place: Place, held: Held, told: string[]): number | null {
  const { rows, summary } = held;
  const { first, last, layer } = place;
  if ((first !== null && first < rows.from) || (last !== null && last >= rows.to)) {
    const asked = ends({ from: first ?? rows.from, to: (last ?? rows.to - 1) + 1 });
    told.push(`The address asks for the layers ${asked}. ${layers(held)}: shown are ${ends(seenDepth(place, rows))}.`);
  }
  if (layer === null || (layer >= rows.from && layer < rows.to)) return layer;
  const nearest = Math.min(Math.max(layer, rows.from), rows.to - 1);
  const name = summary.sites[nearest]?.name ?? "";
  told.push(`The address asks for layer ${grouped(layer)}. ${layers(held)}: shown is the nearest, \`${name}\`.`);
  return nearest;
}

function stepOf(place: Place, held: Held, told: string[]): number | null {
  const { steps, summary, other } = held;
  const { from, to, step } = place;
  // A last sample stands as long as the one before, until another comes: a link that reaches there was right.
  const room = steps.to - Math.max(summary.steps, other?.steps ?? 0);
  if ((from !== null && from >= steps.to) || (to !== null && to >= steps.to + room)) {
    const asked = ends({ from: from ?? steps.from, to: (to ?? steps.to - 1) + 1 });
    told.push(`The address asks for the steps ${asked}. ${made(held)}: shown are ${ends(seen(place, steps))}.`);
  }
  if (step === null || step < steps.to + room) return step;
  const last = summary.samples > 0 && summary.last_step !== null;
  const lines = last
    ? `, and the lines by layer are those of the last sample, step ${grouped(summary.last_step!)}`
    : "";
  told.push(`The address asks for step ${grouped(step)}. ${made(held)}: no step is chosen${lines}.`);
  return null;
}
