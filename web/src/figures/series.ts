/** What a figure of lines is given. */

export interface Series {
  readonly label: string;
  /** One of the palette's seven colours, or that of references. */
  readonly colour: 0 | 1 | 2 | 3 | 4 | 5 | 6 | "ref";
  /** A measured line is drawn through, a predicted one dashed, a reference (a bound, a rule of thumb) dotted. */
  readonly style: "measured" | "predicted" | "reference";
  readonly x: ArrayLike<number>;
  /** As they are, also on a logarithmic axis: what has no place there (0, NaN, infinity) is drawn at its edge. */
  readonly y: ArrayLike<number>;
}

export interface AxisSpec {
  readonly label: string;
  readonly scale?: "linear" | "log";
  /** Whether only whole numbers get a tick. */
  readonly whole?: boolean;
}

/** Why a value has no place on an axis, or where it stands between the axis' ends. */
export type Edge = "zero" | "below" | "above" | "nan";
