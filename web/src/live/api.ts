/** What the server of `levada serve` is asked, and the shapes of its answers (src/levada/web/shapes.py). */

export type Numeric = number | "nan" | "inf" | "-inf" | null;

/** A number; NaN also where nothing was measured. */
export function value(told: Numeric | undefined): number {
  if (typeof told === "number") return told;
  return told === "inf" ? Number.POSITIVE_INFINITY : told === "-inf" ? Number.NEGATIVE_INFINITY : Number.NaN;
}

export interface Row {
  readonly id: string;
  readonly name: string;
  readonly title: string;
  readonly kind: string;
  /** A training that its process left is stopped; a run elsewhere is not ended. */
  readonly state: "running" | "ended" | "stopped" | "failed" | "not ended";
  readonly verdict: "healthy" | "warn" | "error" | "unknown" | null;
  /** Up to which step one that is called healthy was seen; empty if to its end. */
  readonly until: string;
  readonly steps: number;
  readonly depth: number;
  readonly loss: Numeric;
  readonly modified: number;
  readonly problem: string;
}

export interface Runs {
  readonly runs: readonly Row[];
  /** Runs that were found and are not read yet. */
  readonly waiting: number;
  readonly left_out: number;
  readonly version: string;
  /** What the served folder is called; empty where the server has none to show. */
  readonly folder: string;
}

export interface Fact {
  readonly label: string;
  readonly value: string;
  readonly note: string;
}

export interface Change {
  readonly name: string;
  readonly patch: string;
  readonly verified: boolean;
  readonly trust: string;
  readonly rows: readonly (readonly [string, string, string])[];
}

export interface Found {
  readonly rule: string;
  readonly severity: "error" | "warn" | "info";
  readonly status: "fired" | "clear" | "unknown";
  readonly title: string;
  readonly claim: string;
  readonly first: string;
  readonly last: string;
  readonly came: number | null;
  readonly renewed: number | null;
  readonly over: number | null;
  readonly evidence: readonly Fact[];
  readonly ruled_out: readonly string[];
  readonly consequence: string;
  readonly falsify: string;
  readonly calibration: string;
  readonly source: string;
  readonly remedies: readonly Change[];
}

export interface Table {
  readonly head: readonly string[];
  readonly rows: readonly { readonly site: string; readonly kind: string; readonly cells: readonly string[] }[];
  readonly total: number;
}

/** A claim of a study: what was said, when it holds, and how it ended. */
export interface Claim {
  readonly name: string;
  readonly status: "held" | "not held" | "not held, corrected" | "not decided";
  readonly statement: string;
  readonly criterion: string;
  readonly reason: string;
  readonly correction: string;
  readonly correction_label: string;
  readonly paper_value: string;
  readonly source: string;
  /** What the last cell of `pairs` is. */
  readonly compared: string;
  readonly pairs: readonly (readonly [string, string, string, string])[];
  readonly numbers: readonly Fact[];
  readonly statistic: string;
  readonly seeds: string;
}

/** A figure of a check or a study, with its numbers as a report holds them (src/report/packed.ts). */
export interface Drawing {
  readonly title: string;
  readonly caption: string;
  readonly data: string;
  readonly table: {
    readonly head: readonly string[];
    readonly rows: readonly (readonly string[])[];
    readonly total: number;
  };
  /** The place of the finding whose evidence it shows. */
  readonly finding: number | null;
  /** PNGs in base64, from left to right. */
  readonly images: readonly {
    readonly label: string;
    readonly alternative: string;
    readonly png: string;
    readonly width: number;
    readonly height: number;
  }[];
  /** Why a picture has no images, or not all of them. */
  readonly missing: string;
}

export interface Drawings {
  readonly drawings: readonly Drawing[];
  readonly total: number;
}

export interface Summary extends Row {
  readonly created: string;
  readonly command: string;
  readonly versions: Readonly<Record<string, string>>;
  readonly config: Readonly<Record<string, unknown>>;
  readonly told: string;
  readonly headline: string;
  readonly claim: string;
  readonly facts: readonly Fact[];
  readonly sites: readonly { readonly name: string; readonly kind: string; readonly shape: readonly number[] }[];
  readonly signals: readonly { readonly name: string; readonly label: string }[];
  readonly logged: readonly string[];
  readonly first_step: number | null;
  readonly last_step: number | null;
  /** The last sampled step of each process that holds blocks. */
  readonly reached: readonly number[];
  /** How often the record was mended, or gone on with from an earlier step. */
  readonly rewritten: number;
  readonly samples: number;
  readonly overhead: Numeric;
  readonly ranks: readonly number[];
  readonly findings: readonly Found[];
  readonly claims?: readonly Claim[];
  readonly notes: readonly string[];
  readonly damage: readonly string[];
  readonly table: Table | null;
  /** What of the inside of a watched run's layers is not recorded, and why not. */
  readonly lacks: Readonly<Partial<Record<"mixing" | "gates", string>>>;
  readonly has: readonly ("loss" | "held_out" | "heat" | "mixing" | "gates" | "memory" | "drawings")[];
}

/** Whether no step comes any more. A run without an end may be written elsewhere, where nobody here can look. */
export const isOver = ({ state }: Pick<Row, "state">): boolean => state !== "running" && state !== "not ended";

/** Why there is no answer, in a sentence. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    sentence: string,
  ) {
    super(sentence);
  }
}

/** What one does where a server was started anew with `--token`. */
export const REFUSED =
  "The server was started anew, and answers no page that was opened before. Open the address that it printed.";

/** What a figure says of a failure: nothing of a server that is gone or refuses, as the page says that once. */
export function sentence(error: unknown, what: string): string {
  if (!(error instanceof ApiError)) return `${what} could not be read.`;
  return error.status === 0 || error.status === 401 ? "" : error.message;
}

type Asked = Readonly<Record<string, string | number | null | undefined>>;

export function address(path: string, asked: Asked = {}): string {
  const query = new URLSearchParams();
  for (const [name, one] of Object.entries(asked)) if (one !== null && one !== undefined) query.set(name, String(one));
  return `api/1/${path}${query.size ? `?${query}` : ""}`;
}

/** Ask, and give the JSON of the answer. */
export async function ask<Answer>(path: string, asked: Asked = {}, signal?: AbortSignal): Promise<Answer> {
  let response: Response;
  try {
    response = await fetch(address(path, asked), signal ? { signal } : {});
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "The server does not answer. Is `levada serve` still running?");
  }
  const told = await response.json().catch(() => null);
  if (response.ok && told !== null) return told as Answer;
  if (response.status === 401) throw new ApiError(401, REFUSED);
  const detail = (told as { detail?: unknown } | null)?.detail;
  throw new ApiError(response.status, typeof detail === "string" ? detail : `The server answers ${response.status}.`);
}
