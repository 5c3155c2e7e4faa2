/** All that somebody can choose on the explorer's page, and how a link says it. */

import { activationNames } from "../engine/activation";
import type { ConnectionName, ConnectionOptions } from "../engine/connections/index";
import type { Initialisation } from "../engine/linear";
import type { NetworkOptions } from "../engine/network";
import type { OptimizerOptions } from "../engine/optimise";
import type { CellName } from "../engine/recurrent/cells";
import type { Colour } from "../figures/series";
import { grouped, listed } from "../page/number";

export const TABS = ["depth", "train", "time", "mixing", "lessons"] as const;
export type Tab = (typeof TABS)[number];

export const CONNECTIONS: readonly ConnectionName[] = [
  "plain",
  "residual",
  "post_norm",
  "highway",
  "dense",
  "hyper",
  "manifold",
  "identity",
  "attention",
];

export const INITS = ["pytorch_default", "he", "glorot", "orthogonal", "gaussian"] as const;
export const NORMS = ["none", "layer", "rms", "batch"] as const;
export const PRECISIONS = ["float32", "float64"] as const;
export const OPTIMIZERS = ["sgd", "momentum", "adamw"] as const;
export const CELLS = ["rnn", "lstm", "gru"] as const satisfies readonly CellName[];
export const VIEWS = ["both", "signal", "gradient", "update"] as const;

export interface Settings {
  readonly tab: Tab;
  readonly expert: boolean;
  /** In the order in which they were chosen. */
  readonly connections: readonly ConnectionName[];
  readonly depth: number;
  readonly width: number;
  readonly activation: string;
  readonly init: (typeof INITS)[number];
  readonly gain: number;
  readonly weightVariance: number;
  readonly biasVariance: number;
  readonly norm: (typeof NORMS)[number];
  readonly preActivation: boolean;
  readonly bias: boolean;
  readonly streams: number;
  readonly iterations: number;
  readonly growth: number;
  /** How many blocks of layers attention over depth reads from; with as many as layers, from each layer. */
  readonly blocks: number;
  readonly gateBias: number;
  readonly alpha: number;
  readonly optimizer: (typeof OPTIMIZERS)[number];
  readonly lr: number;
  readonly precision: (typeof PRECISIONS)[number];
  readonly rows: number;
  readonly seed: number;
  readonly view: (typeof VIEWS)[number];
  /** How far the mixing tab's matrices are from where they start. */
  readonly spread: number;
  /** Of the tab that trains: what trains well is not what shows how signals vanish. */
  readonly trainDepth: number;
  readonly trainWidth: number;
  readonly trainActivation: string;
  readonly trainNorm: (typeof NORMS)[number];
  readonly trainLr: number;
  readonly trainSteps: number;
  /** Of the tab through time. */
  readonly cells: readonly CellName[];
  readonly timeSteps: number;
  readonly units: number;
  readonly recurrentGain: number;
  readonly forgetBias: number;
  readonly orthogonal: boolean;
  /** Of the lessons: which is open, what was predicted, and how its figures differ from where they start. */
  readonly chapter: number;
  readonly answers: string;
  readonly lesson: string;
}

interface Field<T> {
  readonly initial: T;
  /** What a value must be, behind "must be". */
  readonly rule: string;
  write(value: T): string;
  /** undefined if it is no such value. */
  read(text: string): T | undefined;
}

/** A range of numbers; `whole` ones only, or any. */
export interface Range {
  readonly low: number;
  readonly high: number;
}

export const RANGES = {
  depth: { low: 1, high: 1000 },
  width: { low: 1, high: 256 },
  gain: { low: 0.01, high: 100 },
  weightVariance: { low: 0, high: 1000 },
  biasVariance: { low: 0, high: 1000 },
  streams: { low: 2, high: 8 },
  iterations: { low: 1, high: 100 },
  growth: { low: 1, high: 64 },
  blocks: { low: 1, high: 1000 },
  gateBias: { low: -10, high: 10 },
  alpha: { low: 0, high: 100 },
  lr: { low: 1e-6, high: 100 },
  rows: { low: 2, high: 256 },
  seed: { low: 0, high: 999_999 },
  spread: { low: 0.01, high: 10 },
  trainDepth: { low: 1, high: 128 },
  trainWidth: { low: 4, high: 64 },
  trainLr: { low: 1e-5, high: 1 },
  trainSteps: { low: 20, high: 5000 },
  timeSteps: { low: 2, high: 500 },
  units: { low: 2, high: 128 },
  recurrentGain: { low: 0.01, high: 10 },
  forgetBias: { low: -10, high: 20 },
  chapter: { low: 1, high: 7 },
} as const satisfies Partial<Record<keyof Settings, Range>>;

function number(initial: number, { low, high }: Range, whole: boolean): Field<number> {
  return {
    initial,
    rule: `a ${whole ? "whole " : ""}number from ${grouped(low)} to ${grouped(high)}`,
    write: String,
    read(text) {
      const value = /^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
      return value >= low && value <= high && (!whole || Number.isInteger(value)) ? value : undefined;
    },
  };
}

const whole = (initial: number, range: Range) => number(initial, range, true);
const real = (initial: number, range: Range) => number(initial, range, false);

function oneOf<T extends string>(initial: T, known: readonly T[]): Field<T> {
  return {
    initial,
    rule: `one of ${listed(known)}`,
    write: (value) => value,
    read: (text) => known.find((one) => one === text),
  };
}

function flag(initial: boolean): Field<boolean> {
  const read = (text: string) => (text === "1" ? true : text === "0" ? false : undefined);
  return { initial, rule: "1 or 0", write: (value) => (value ? "1" : "0"), read };
}

function several<T extends string>(initial: readonly T[], known: readonly T[], most: number): Field<readonly T[]> {
  return {
    initial,
    rule: `one to ${most} of ${listed(known)}, with commas between them, each once`,
    write: (values) => values.join(","),
    read(text) {
      const found = text.split(",").map((name) => known.find((one) => one === name));
      const names = found.filter((name) => name !== undefined);
      const good = names.length === found.length && new Set(names).size === names.length && names.length <= most;
      return good ? names : undefined;
    },
  };
}

/** What the lessons read themselves; here only that it is such a text. */
function packed(what: string): Field<string> {
  const read = (text: string) => (/^[\w.:;,-]{0,1000}$/.test(text) ? text : undefined);
  return { initial: "", rule: `${what} as the lessons write them`, write: (value) => value, read };
}

const FIELDS: { readonly [K in keyof Settings]: Field<Settings[K]> } = {
  tab: oneOf("depth", TABS),
  expert: flag(false),
  connections: several(["plain", "residual"], CONNECTIONS, CONNECTIONS.length),
  depth: whole(50, RANGES.depth),
  width: whole(32, RANGES.width),
  activation: oneOf("sigmoid", activationNames),
  init: oneOf("glorot", INITS),
  gain: real(1, RANGES.gain),
  weightVariance: real(1, RANGES.weightVariance),
  biasVariance: real(0, RANGES.biasVariance),
  norm: oneOf("none", NORMS),
  preActivation: flag(false),
  bias: flag(true),
  streams: whole(4, RANGES.streams),
  iterations: whole(20, RANGES.iterations),
  growth: whole(8, RANGES.growth),
  blocks: whole(8, RANGES.blocks),
  gateBias: real(-2, RANGES.gateBias),
  alpha: real(1, RANGES.alpha),
  optimizer: oneOf("sgd", OPTIMIZERS),
  lr: real(0.1, RANGES.lr),
  precision: oneOf("float32", PRECISIONS),
  rows: whole(32, RANGES.rows),
  seed: whole(0, RANGES.seed),
  view: oneOf("both", VIEWS),
  spread: real(0.3, RANGES.spread),
  trainDepth: whole(48, RANGES.trainDepth),
  trainWidth: whole(32, RANGES.trainWidth),
  trainActivation: oneOf("relu", activationNames),
  trainNorm: oneOf("layer", NORMS),
  trainLr: real(0.002, RANGES.trainLr),
  trainSteps: whole(300, RANGES.trainSteps),
  cells: several(["rnn", "lstm", "gru"], CELLS, 3),
  timeSteps: whole(200, RANGES.timeSteps),
  units: whole(32, RANGES.units),
  recurrentGain: real(0.577, RANGES.recurrentGain),
  forgetBias: real(1, RANGES.forgetBias),
  orthogonal: flag(false),
  chapter: whole(1, RANGES.chapter),
  answers: packed("predictions"),
  lesson: packed("settings"),
};

const NAMES = Object.keys(FIELDS) as (keyof Settings)[];

export const DEFAULTS = Object.fromEntries(NAMES.map((name) => [name, FIELDS[name].initial])) as unknown as Settings;

/** What differs from the defaults, as the part of an address behind `#`. */
export function encode(settings: Settings): string {
  const parts = NAMES.flatMap((name) => {
    const field = FIELDS[name] as Field<unknown>;
    const text = field.write(settings[name]);
    return text === field.write(field.initial) ? [] : [`${name}=${text}`];
  });
  return parts.join("&");
}

export interface Decoded {
  readonly settings: Settings;
  /** A sentence for each part that is no setting: the default stands in its place. */
  readonly refused: readonly string[];
}

export function decode(query: string): Decoded {
  const found: Record<string, unknown> = {};
  const refused: string[] = [];
  for (const [name, text] of new URLSearchParams(query.replace(/^[#?/]+/, ""))) {
    if (!Object.hasOwn(FIELDS, name)) {
      refused.push(`There is no setting ${quoted(name)}.`);
      continue;
    }
    const { read, rule, write, initial } = FIELDS[name as keyof Settings] as Field<unknown>;
    const value = read(text);
    if (value !== undefined) found[name] = value;
    else refused.push(`${name} must be ${rule}, got ${quoted(text)}: it is ${write(initial)}.`);
  }
  return { settings: { ...DEFAULTS, ...found }, refused };
}

function quoted(text: string): string {
  return `"${text.length > 40 ? `${text.slice(0, 40)}…` : text}"`;
}

const PREFERRED: Record<ConnectionName, Colour> = {
  plain: 0,
  residual: 1,
  highway: 2,
  dense: 3,
  hyper: 4,
  manifold: 5,
  identity: 6,
  attention: 2,
  post_norm: 3,
};

/** A colour for each chosen connection: its own, or where another has it, one that is free. */
export function colours(connections: readonly ConnectionName[]): Map<ConnectionName, Colour> {
  const taken = new Map<ConnectionName, Colour>();
  const used = new Set<Colour>();
  const later: ConnectionName[] = [];
  for (const name of connections) {
    if (used.has(PREFERRED[name])) later.push(name);
    else taken.set(name, PREFERRED[name]);
    used.add(PREFERRED[name]);
  }
  for (const name of later) {
    const free = ([0, 1, 2, 3, 4, 5, 6, 7, 8] as const).find((colour) => !used.has(colour)) ?? "ref";
    taken.set(name, free);
    used.add(free);
  }
  return taken;
}

export function initialisation(settings: Settings): Initialisation {
  const { init, gain, weightVariance, biasVariance } = settings;
  return init === "gaussian" ? { name: init, gain, weightVariance, biasVariance } : { name: init, gain };
}

export function connectionOptions(settings: Settings, name: ConnectionName): ConnectionOptions {
  const { streams, iterations, growth, blocks, gateBias, alpha, depth } = settings;
  switch (name) {
    case "highway":
      return { name, bias: gateBias };
    case "post_norm":
      return { name, alpha };
    case "dense":
      return { name, growth };
    case "hyper":
    case "identity":
      return { name, streams };
    case "manifold":
      return { name, streams, iterations };
    case "attention":
      return { name, blockSize: Math.ceil(depth / blocks) };
    default:
      return { name };
  }
}

/** What the engine makes a network of. */
export function networkOptions(settings: Settings, name: ConnectionName): NetworkOptions {
  const { depth, width, activation, norm, preActivation, bias, precision, seed } = settings;
  const connection = connectionOptions(settings, name);
  const init = initialisation(settings);
  return { depth, width, activation, norm, preActivation, bias, precision, seed, connection, init };
}

/** About how many products a pass takes, and what stands for its other work: of networks, which takes longer. */
export function cost({ depth, width, connection }: NetworkOptions): number {
  const own = 2 * width * width;
  switch (connection.name) {
    case "dense":
      return depth * 2 * (width + (depth * connection.growth) / 2) * connection.growth;
    case "hyper":
    case "manifold":
    case "identity":
      return depth * (own + 2 * (connection.streams ?? 4) ** 2 * width);
    case "highway":
      return 2 * depth * own;
    case "attention":
      return depth * (own + (5 * width * depth) / (2 * (connection.blockSize ?? 1)));
    default:
      return depth * own;
  }
}

/** With PyTorch's defaults, said in full where they are not zero. */
export function optimizerOptions({ optimizer, lr }: Settings): OptimizerOptions {
  if (optimizer === "adamw") return { name: "adamw", lr, weightDecay: 0.01 };
  return optimizer === "momentum" ? { name: "sgd", lr, momentum: 0.9 } : { name: "sgd", lr };
}

/** What a server is asked to check: names as in the engine's options. */
export function checkRequest(settings: Settings, name: ConnectionName): object {
  return { ...networkOptions(settings, name), optimizer: optimizerOptions(settings), batch: settings.rows };
}
