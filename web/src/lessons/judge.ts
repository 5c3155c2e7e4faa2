/** How far a prediction was off, in words. */

import type { Settings } from "../explorer/settings";
import { short, superscript } from "../page/number";
import { CERTAIN, DRAWN_ONCE, type Lab, type Sample, sample } from "./measure";
import type { Ask, NumberQuestion, Question } from "./types";

export interface Verdict {
  /** What the engine found: one number, or one for each option. */
  readonly found: readonly number[];
  /** The option or range that is right; 0 where a number was asked. */
  readonly place: number;
  readonly right: boolean;
  readonly words: string;
  /** How the draws of random weights differ; empty where nothing is drawn. */
  readonly spread: string;
  /** The draw that each number is of. */
  readonly seeds: readonly number[];
}

type Judged = Omit<Verdict, "spread" | "seeds">;

/** Two numbers this close are the same to a reader; one draw of random weights differs from the next by more. */
const SAME = Math.log(1.25);
/** A factor per layer counts once for each: over fifty layers a tenth too much is a hundred times. */
const SAME_RATE = Math.log(1.1);

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
  const samples: Sample[] = [];
  for (const ask of asksOf(question)) samples.push(await sample(ask, chapter, lab));
  const judged = judge(
    question,
    prediction,
    samples.map(({ value }) => value),
  );
  return { ...judged, spread: spread(question, samples), seeds: samples.map(({ seed }) => seed) };
}

const ALIKE = 1.005;

/** What other random weights would have given. */
function spread(question: Question, samples: readonly Sample[]): string {
  const all = samples.every(({ low, high }) => low === high || high < ALIKE * low);
  if (asksOf(question).every(({ quantity }) => DRAWN_ONCE.includes(quantity))) {
    return CERTAIN.includes(asksOf(question)[0].quantity) ? "" : "One training, from one draw of the weights.";
  }
  const counts = samples.map(({ draws }) => draws);
  const [fewest, most] = [Math.min(...counts), Math.max(...counts)];
  const told = fewest === most ? `${most}` : `${fewest} to ${most}`;
  if (all) return `${told} draws of the random numbers agree.`;
  if (samples.length > 1) return `Each is the middle one of ${told} draws of the random numbers.`;
  const [{ low, high, inner, draws }] = samples;
  const digits = short(low, 2) === short(high, 2) ? 3 : 2;
  return `This is the middle one of ${draws} draws of the random numbers; ${inner} of them lie between ${short(low, digits)} and ${short(high, digits)}.`;
}

export function judge(question: Question, prediction: number, found: readonly number[]): Judged {
  switch (question.kind) {
    case "number":
      return { found, place: 0, ...ofNumber(prediction, found[0], question) };
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
  if (value > 1 && unit.startsWith("of ")) return `${short(value)} times ${unit.slice(3)}`;
  return unit ? `${short(value)} ${one ? unit.slice(0, -1) : unit}` : short(value);
}

function ofNumber(prediction: number, found: number, { unit, ask }: NumberQuestion): Pick<Verdict, "right" | "words"> {
  const it = `It is ${said(found, unit)}; you said ${said(prediction, unit)}.`;
  if (!(found > 0) || found === Number.POSITIVE_INFINITY) {
    return { right: false, words: `${it} No number on the slider is near.` };
  }
  const log = Math.log(prediction / found);
  const rate = ask.quantity === "rate";
  if (Math.abs(log) < (rate ? SAME_RATE : SAME)) return { right: true, words: `Well said. ${it}` };
  const side = log > 0 ? "too high" : "too low";
  return {
    right: false,
    words: `${it} That is ${side} by a factor of ${factor(Math.abs(log))}${rate ? " in each layer" : ""}.`,
  };
}

function factor(log: number): string {
  const decades = log / Math.LN10;
  if (decades < 2) return short(Math.exp(log), 2);
  if (decades < 3) return short(Math.round(Math.exp(log)));
  return `about ${superscript(Math.round(decades))}, a one with ${Math.round(decades)} zeros`;
}
