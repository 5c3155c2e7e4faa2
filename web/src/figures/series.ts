/** What a figure of lines is given. */

/** The palette's seven colours, and from 7 to 13 the same again with other, hollow marks; or that of references. */
export type Colour = 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | "ref";

export interface Series {
  readonly label: string;
  readonly colour: Colour;
  /** A measured line is drawn through, a predicted one dashed, a reference (a bound, a rule of thumb) dotted. */
  readonly style: "measured" | "predicted" | "reference";
  /** In rising order. */
  readonly x: ArrayLike<number>;
  /** As they are, also on a logarithmic axis: what has no place there (0, NaN, infinity) is drawn at its edge. */
  readonly y: ArrayLike<number>;
  /** Whether `y` holds natural logarithms of the values, which do not underflow; for a logarithmic axis only. */
  readonly logs?: boolean;
  /** Whether the axis keeps to the other lines where this one leaves them far behind: a theory's, say. */
  readonly yields?: boolean;
  /** Not 0 where nothing was measured: the line has a gap there, and no mark. */
  readonly lacking?: ArrayLike<number>;
  /** Where points stand for more values than themselves: of those without a place how many, the first and the last x. */
  readonly edges?: Readonly<Partial<Record<Edge, readonly [count: number, first: number, last: number]>>>;
}

/** An interval around a line, or a band of its own. */
export interface Area {
  readonly label: string;
  readonly colour: Colour;
  readonly x: ArrayLike<number>;
  readonly low: ArrayLike<number>;
  readonly high: ArrayLike<number>;
}

/** A stretch of the x axis that is shaded. */
export interface Shade {
  readonly from: number;
  readonly to: number;
  readonly label: string;
  /** The whole sentence. */
  readonly told: string;
}

export interface AxisSpec {
  readonly label: string;
  readonly scale?: "linear" | "log";
  /** Whether only whole numbers get a tick. */
  readonly whole?: boolean;
}

/** Why a value has no place on an axis, or where it stands between the axis' ends. */
export type Edge = "zero" | "below" | "above" | "nan";

/** Where a series has an x; -1 where it has none. */
export function indexAt({ x }: Pick<Series, "x">, value: number): number {
  let [low, high] = [0, x.length - 1];
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (x[middle] === value) return middle;
    if (x[middle] < value) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
}

/** Every x of any of the series, in rising order. */
export function allX(series: readonly Series[]): number[] {
  const found = new Set<number>();
  for (const { x } of series) for (let at = 0; at < x.length; at++) found.add(x[at]);
  return [...found].sort((a, b) => a - b);
}
