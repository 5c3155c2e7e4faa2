/** What a lesson is made of: typed blocks of text, and questions that the engine answers. */

import type { ConnectionName } from "../engine/connections/index";
import type { CellName } from "../engine/recurrent/cells";
import type { Settings } from "../explorer/settings";
import type { FormulaName } from "./formulas";
import type { SourceName } from "./sources";

/** The same matter for two readers: one who meets it, and one who knows the field. Paragraphs; *stars* emphasise. */
export interface Told {
  readonly simple: string;
  readonly expert: string;
}

/** One number that the engine computes. What it is about is in the settings, as the explorer has them. */
export type Ask = { readonly settings?: Partial<Settings> } & (
  | {
      /**
       * `kept`: the gradient at the first layer over that at the last. `rate`: its factor per layer. `carried`: the signal at
       * the output over that at the input.
       */
      readonly quantity: "kept" | "rate" | "carried";
      readonly connection: ConnectionName;
      /** The same of another connection, to divide by. */
      readonly over?: ConnectionName;
    }
  /** The steepest slope of `depth` neurons in a row, each `activation(gain u)`. */
  | { readonly quantity: "slope" }
  /** Steps that the last output of causal convolutions depends on, one distance between taps a layer. */
  | { readonly quantity: "reach"; readonly taps: number; readonly distances: readonly number[] }
  /** Steps back after which 1/1000 of the gradient is left. */
  | { readonly quantity: "horizon"; readonly cell: CellName }
  /** The largest row sum of the product of mixing matrices that have moved away from their start. */
  | { readonly quantity: "gain"; readonly kind: "hyper" | "manifold" }
  /** How far the sums of a product of Sinkhorn's matrices are from 1 at most. */
  | { readonly quantity: "rows" | "columns" }
  /** Of a trained network: its loss at the end; points of accuracy lost without a layer, the median; effective depth. */
  | { readonly quantity: "loss" | "lesion" | "length"; readonly connection: "plain" | "residual" }
);

interface Asked {
  /** Unique in its chapter, and short: it stands in links. */
  readonly id: string;
  readonly text: Told;
  /** What to think of the answer; shown with it. */
  readonly why: Told;
}

export interface NumberQuestion extends Asked {
  readonly kind: "number";
  readonly ask: Ask;
  /** Of the slider, which is logarithmic: equal ways for equal factors. */
  readonly low: number;
  readonly high: number;
  readonly unit: string;
}

/** Of several options one has the largest number, the smallest, or that nearest to 1. */
export interface ChoiceQuestion extends Asked {
  readonly kind: "choice";
  readonly options: readonly { readonly label: string; readonly ask: Ask }[];
  readonly wins: "largest" | "smallest" | "nearest";
  /** What the numbers are. */
  readonly unit: string;
}

/** In which of several ranges a number lies; each reaches up to its `below`. */
export interface BandQuestion extends Asked {
  readonly kind: "band";
  readonly ask: Ask;
  readonly bands: readonly { readonly label: string; readonly below: number }[];
  readonly unit: string;
}

export type Question = NumberQuestion | ChoiceQuestion | BandQuestion;

export type ControlName = keyof Settings & keyof typeof import("./controls").CONTROLS;

export interface Drawing {
  readonly kind: "neuron" | "depth" | "time" | "mixing" | "training";
  readonly title: string;
  /** For `depth`: what is drawn. */
  readonly shows?: "signal" | "gradient";
  readonly controls: readonly ControlName[];
  readonly caption: Told;
}

export type Block =
  | { readonly kind: "text"; readonly text: Told }
  | { readonly kind: "formula"; readonly name: FormulaName; readonly expert?: boolean }
  /** What is often said, and what is true. */
  | {
      readonly kind: "correction";
      readonly said: string;
      readonly text: Told;
      /** The question that it answers: it waits until that is predicted. */
      readonly after?: string;
    }
  | { readonly kind: "question"; readonly question: Question };

export interface Section {
  readonly title: string;
  readonly blocks: readonly Block[];
  readonly drawing?: Drawing;
}

export interface Chapter {
  /** What its figures and questions have in common. */
  readonly settings: Partial<Settings>;
  readonly sections: readonly Section[];
  readonly sources: readonly SourceName[];
}

export function questionsOf({ sections }: Chapter): Question[] {
  return sections.flatMap(({ blocks }) =>
    blocks.flatMap((block) => (block.kind === "question" ? [block.question] : [])),
  );
}
