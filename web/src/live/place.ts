/** What the page shows, as it stands in its address: a link opens the same picture. */

export const SORTS = ["modified", "name", "verdict", "steps", "loss"] as const;
export type Sort = (typeof SORTS)[number];
export const VERDICTS = ["error", "warn", "unknown", "healthy"] as const;
export type Verdict = (typeof VERDICTS)[number];

/** The list of runs. */
export interface Listing {
  readonly page: "runs";
  readonly text: string;
  readonly verdict: Verdict | null;
  readonly sort: Sort;
  /** Against the order that a column has by itself: times from the latest on, names from A. */
  readonly reversed: boolean;
}

/** One run, or two beside each other. */
export interface Place {
  readonly page: "run";
  readonly run: string;
  readonly other: string | null;
  /** The signals of the two heat maps; null for the usual ones. */
  readonly signals: readonly [string | null, string | null];
  /** Steps that are seen, the last one too; null for all, also those that are still to come. */
  readonly from: number | null;
  readonly to: number | null;
  /** Sites that are seen, the last one too. */
  readonly first: number | null;
  readonly last: number | null;
  /** The cell that was chosen. */
  readonly step: number | null;
  readonly layer: number | null;
}

export type Page = Listing | Place;

export const LISTING: Listing = { page: "runs", text: "", verdict: null, sort: "modified", reversed: false };

const ID = /^[A-Za-z0-9_-]{1,64}$/;
const NUMBER = /^\d{1,12}$/;
const NUMBERS = ["from", "to", "first", "last", "step", "layer"] as const;

/** A run as it is first shown. */
export function whole(run: string, other: string | null = null): Place {
  const none = { from: null, to: null, first: null, last: null, step: null, layer: null };
  return { page: "run", run, other, signals: [null, null], ...none };
}

function parts(hash: string): { path: string; run: string | null; asked: URLSearchParams } {
  const [path, query = ""] = hash.replace(/^#?\/?/, "").split("?", 2);
  const [first, run, ...more] = path.split("/");
  const isRun = first === "run" && ID.test(run ?? "") && more.length === 0;
  return { path, run: isRun ? run : null, asked: new URLSearchParams(query) };
}

/** Read an address' part behind `#`; what cannot be meant is left out. */
export function decode(hash: string): Page {
  const { run, asked } = parts(hash);
  if (run !== null) return place(run, asked);
  const verdict = asked.get("verdict");
  const sort = asked.get("sort");
  return {
    page: "runs",
    text: (asked.get("text") ?? "").slice(0, 200),
    verdict: VERDICTS.find((one) => one === verdict) ?? null,
    sort: SORTS.find((one) => one === sort) ?? "modified",
    reversed: asked.get("reversed") === "1",
  };
}

function place(run: string, asked: URLSearchParams): Place {
  const other = asked.get("with");
  const told: Record<string, number | null> = {};
  for (const name of NUMBERS) {
    const value = asked.get(name);
    told[name] = value !== null && NUMBER.test(value) ? Number(value) : null;
  }
  const [from, to] = ordered(told.from, told.to);
  const [first, last] = ordered(told.first, told.last);
  return {
    ...whole(run, other !== null && ID.test(other) && other !== run ? other : null),
    signals: [signal(asked.get("signal")), signal(asked.get("second"))],
    from,
    to,
    first,
    last,
    step: told.step,
    layer: told.layer,
  };
}

const signal = (name: string | null): string | null => (name && /^[\w.]{1,64}$/.test(name) ? name : null);

/** A stretch whose end comes before its begin is none. */
function ordered(from: number | null, to: number | null): [number | null, number | null] {
  return from !== null && to !== null && to < from ? [null, null] : [from, to];
}

/** Write it as the part behind `#`; only what differs from the usual. */
export function encode(page: Page): string {
  const asked = new URLSearchParams();
  const set = (name: string, value: string | number | null) => {
    if (value !== null && value !== "") asked.set(name, String(value));
  };
  if (page.page === "runs") {
    set("text", page.text);
    set("verdict", page.verdict);
    if (page.sort !== "modified") set("sort", page.sort);
    if (page.reversed) set("reversed", 1);
    return `#/${query(asked)}`;
  }
  set("with", page.other);
  set("signal", page.signals[0]);
  set("second", page.signals[1]);
  for (const name of NUMBERS) set(name, page[name]);
  return `#/run/${page.run}${query(asked)}`;
}

/** What an address says that cannot be meant, and is left out by `decode`. */
export function unmeant(hash: string): string[] {
  const { path, run, asked } = parts(hash);
  const kept = new URLSearchParams(encode(decode(hash)).split("?", 2)[1] ?? "");
  // What is usual is not written again, and is meant all the same.
  const usual = (name: string, value: string) =>
    value === "" ||
    (run === null && ((name === "sort" && value === "modified") || (name === "reversed" && value === "0")));
  const left = [...asked].filter(([name, value]) => kept.get(name) !== value && !usual(name, value));
  const told = left.map(([name, value]) => `${name}=${value}${behind(name, value, asked)}`);
  return [...(path !== "" && run === null ? [path] : []), ...told].map(cut);
}

/** Why a stretch is none that begins behind its end, after what it begins with. */
function behind(name: string, value: string, asked: URLSearchParams): string {
  const end = name === "from" ? "to" : name === "first" ? "last" : null;
  if (end === null || !NUMBER.test(value)) return "";
  const until = asked.get(end) ?? "";
  return NUMBER.test(until) && Number(until) < Number(value) ? ` is behind ${end}=${until}` : "";
}

const cut = (text: string): string => (text.length > 60 ? `${text.slice(0, 60)}…` : text);

const query = (asked: URLSearchParams): string => (asked.size ? `?${asked}` : "");

const TOKEN = /^#token=([\w.~-]{8,256})$/;

/** What the address that `levada serve` prints says of the launch's token, and what is left of it. */
export function tokenOf(hash: string): { token: string | null; rest: string } {
  const found = TOKEN.exec(hash);
  return found ? { token: found[1], rest: "#/" } : { token: null, rest: hash };
}
