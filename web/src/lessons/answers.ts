/** What a reader has predicted, and how the figures differ from where they start, as parts of a link. */

import { DEFAULTS, decode, encode, type Settings } from "../explorer/settings";

/** By chapter and question: a number, or the place of an option. */
export type Answers = ReadonlyMap<string, number>;

export const keyOf = (chapter: number, question: string): string => `${chapter}.${question}`;

export function readAnswers(text: string): Answers {
  const found = new Map<string, number>();
  for (const part of text.split(",")) {
    const match = /^(\d\.\w+):(-?[\d.]+(?:e-?\d+)?)$/.exec(part);
    if (match && Number.isFinite(Number(match[2]))) found.set(match[1], Number(match[2]));
  }
  return found;
}

export function writeAnswers(answers: Answers): string {
  return [...answers].map(([key, value]) => `${key}:${String(value).replace("+", "")}`).join(",");
}

/** As in the page's address, with other signs between: this stands inside of it. */
export function writePlayed(part: Partial<Settings>): string {
  const names = Object.keys(part);
  const all = encode({ ...DEFAULTS, ...part }).split("&");
  const written = all.filter((one) => names.includes(one.split("=")[0]));
  // What is at its default in the explorer may differ from where the lesson starts.
  const plain = names.filter((name) => !written.some((one) => one.startsWith(`${name}=`)));
  return [...written.map((one) => one.replace("=", ":")), ...plain.map((name) => `${name}:`)].join(";");
}

export interface Played {
  readonly part: Partial<Settings>;
  readonly refused: readonly string[];
}

const NOT_PLAYED: readonly string[] = ["tab", "expert", "chapter", "answers", "lesson"];

export function readPlayed(text: string): Played {
  const parts = text.split(";").filter((part) => part !== "" && !NOT_PLAYED.includes(part.split(":")[0]));
  const [plain, written] = [parts.filter((one) => one.endsWith(":")), parts.filter((one) => !one.endsWith(":"))];
  const { settings, refused } = decode(written.map((one) => one.replace(":", "=")).join("&"));
  const names = [...written.map((one) => one.split(":")[0]), ...plain.map((one) => one.slice(0, -1))];
  const known = names.filter((name): name is keyof Settings => Object.hasOwn(DEFAULTS, name));
  return { part: Object.fromEntries(known.map((name) => [name, settings[name]])), refused };
}
