/** How far a prediction was off, in words. */

import type { Settings } from "../explorer/settings";
import { short, superscript } from "../page/number";
import { type Lab, measure } from "./measure";
import type { Ask, Question } from "./types";

export interface Verdict {
  /** What the engine found: one number, or one for each option. */
  readonly found: readonly number[];
  /** The option or range that is right; 0 where a number was asked. */
  readonly place: number;
  readonly right: boolean;
  readonly words: string;
}

/** Two numbers this close are the same to a reader; one draw of random weights differs from the next by more. */
const SAME = Math.log(1.25);

/** Units that lose their s. */
const COUNTED: readonly string[] = ["steps", "layers", "points"];

export function asksOf(question: Question): readonly Ask[] {
  return question.kind === "choice" ? question.options.map(({ ask }) => ask) : [question.ask];
}

export async function answer(
  question: Question,
  prediction: number,
  chapter: Partial<Settings>,
  lab: Lab,
): Promise<Verdict> {
  const found: number[] = [];
  for (const ask of asksOf(question)) found.push(await measure(ask, chapter, lab));
  return judge(question, prediction, found);
}

export function judge(question: Question, prediction: number, found: readonly number[]): Verdict {
  switch (question.kind) {
    case "number":
      return { found, place: 0, ...ofNumber(prediction, found[0], question.unit) };
    case "choice": {
      const place = winner(found, question.wins);
      const right = place === prediction;
      const { label } = question.options[place];
      return {
        found,
        place,
        right,
        words: `${right ? "Right" : "Not so"}: it is “${label}”, with ${said(found[place], question.unit)}.`,
      };
    }
    case "band": {
      const place = question.bands.findIndex(({ below }) => found[0] < below);
      const right = place === prediction;
      const label = question.bands[place]?.label ?? "none of these";
      return {
        found,
        place,
        right,
        words: `${right ? "Right" : "Not so"}: it is ${said(found[0], question.unit)}, “${label}”.`,
      };
    }
  }
}

function winner(found: readonly number[], wins: "largest" | "smallest" | "nearest"): number {
  const loss = (value: number) =>
    wins === "largest" ? -value : wins === "smallest" ? value : Math.abs(Math.log(Math.abs(value)));
  return found.reduce((best, value, place) => (loss(value) < loss(found[best]) ? place : best), 0);
}

export function said(value: number, unit: string): string {
  if (value === Number.POSITIVE_INFINITY) return "without end";
  const one = Math.abs(value) === 1 && COUNTED.includes(unit);
  return unit ? `${short(value)} ${one ? unit.slice(0, -1) : unit}` : short(value);
}

function ofNumber(prediction: number, found: number, unit: string): Pick<Verdict, "right" | "words"> {
  const it = `It is ${said(found, unit)}; you said ${said(prediction, unit)}.`;
  if (!(found > 0) || found === Number.POSITIVE_INFINITY) {
    return { right: false, words: `${it} No number on the slider is near.` };
  }
  const log = Math.log(prediction / found);
  if (Math.abs(log) < SAME) return { right: true, words: `Well said. ${it}` };
  const side = log > 0 ? "too high" : "too low";
  return { right: false, words: `${it} That is ${side} by a factor of ${factor(Math.abs(log))}.` };
}

function factor(log: number): string {
  const decades = log / Math.LN10;
  if (decades < 2) return short(Math.exp(log), 2);
  if (decades < 3) return short(Math.round(Math.exp(log)));
  return `about ${superscript(Math.round(decades))}, a one with ${Math.round(decades)} zeros`;
}
