/** The formulas of formulas.tex, as MathML: typeset when the pages are built, so that no typesetter is shipped. */

import formulas from "./formulas.tex";

export type FormulaName =
  | "neuron"
  | "sigmoid"
  | "chain"
  | "bound"
  | "chi"
  | "variance"
  | "batch"
  | "residual"
  | "paths"
  | "highway"
  | "lstm"
  | "horizon"
  | "streams"
  | "sinkhorn"
  | "attention";

export interface Formula {
  readonly mathml: string;
  /** How it is read out. */
  readonly alt: string;
}

export const FORMULAS: Readonly<Record<string, Formula>> = formulas;
