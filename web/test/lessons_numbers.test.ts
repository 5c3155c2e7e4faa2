/**
 * Every number that the lessons' texts state, computed again: by the engine, or in closed form.
 *
 * Held are all with a decimal point, a power of ten or three digits, years aside; smaller whole numbers are settings or
 * parts of a formula. What a paper reports cannot be computed here: it is listed as such.
 */

import { expect, test } from "vitest";
import { activation } from "../src/engine/activation";
import { chronoBias, gateTimeScale, LEFT, memoryHorizon } from "../src/engine/recurrent/theory";
import { moments, propagate } from "../src/engine/theory";
import { DEFAULTS } from "../src/explorer/settings";
import { unpack } from "../src/explorer/train/digits";
import file from "../src/explorer/train/digits.json";
import { binomialShares } from "../src/explorer/train/plan";
import { CHAPTERS } from "../src/lessons/chapters/index";
import { asksOf } from "../src/lessons/judge";
import { settingsOf } from "../src/lessons/measure";
import { questionsOf, type Told } from "../src/lessons/types";
import { short } from "../src/page/number";
import { laboratory } from "./lesson_lab";

const chapters = await Promise.all(CHAPTERS.map(({ load }) => load()));
const { heldOut } = await unpack(file);

/** Deep inside of a plain network of wide layers. */
function rate(name: string, weightVariance: number, biasVariance = 0): number {
  const { chi } = propagate({ activation: activation(name), weightVariance, biasVariance, depth: 2000, q0: 1 });
  return Math.sqrt(chi.at(-1)!);
}

const sigma = activation("sigmoid");
const spread = (n: number, epsilon: number, depth: number) => (1 + n * epsilon ** 2) ** depth;
const batch = Math.sqrt(Math.PI / (Math.PI - 1));
const reported = Symbol("a paper's");

type Held = number | typeof reported;

/** Training losses of plain networks of so many sigmoid layers, in order: they say what the lesson says of 2 and of 20. */
async function sigmoids(trainDepth: number, seeds = [0, 1, 2]): Promise<number[]> {
  const losses: number[] = [];
  for (const seed of seeds) {
    const settings = settingsOf({ trainDepth, trainActivation: "sigmoid", trainNorm: "none", seed });
    losses.push((await laboratory().trained(settings, "plain")).reports.at(-1)!.trained.loss);
  }
  return losses.sort((a, b) => a - b);
}

const two = await sigmoids(2);

const HELD: readonly Readonly<Record<string, Held>>[] = [
  { "0.25": sigma.slope(0), "0.0625": sigma.slope(0) ** 2, "0.235": sigma.slope(sigma.value(0)), "2.1": reported },
  {
    "0.25": sigma.slope(0),
    "0.236": rate("sigmoid", 1),
    "9.1×10⁻¹³": sigma.slope(0) ** 20,
    "3.6×10⁻¹²": sigma.slope(0) ** 19,
    "1.0×10⁻⁴": rate("sigmoid", 16) ** 20,
    "0.892": rate("sigmoid", 64),
    "2.3": Math.log(10),
    "0.5": two[0],
    "0.6": two[two.length - 1],
    "300": DEFAULTS.trainSteps,
    "0.0132": rate("sigmoid", 1) ** 3,
    "1.08": reported,
    "1.06": reported,
    "128": reported,
  },
  {
    "0.41": rate("relu", 1 / 3),
    "0.408": rate("relu", 1 / 3),
    "0.05": 0.05,
    "21.8": -6 / Math.log(rate("tanh", 1, 0.05) ** 2),
    "0.7": 0.7,
    "100": reported,
    "10,000": reported,
  },
  {
    "1.2112": batch,
    "2.1×10⁸": batch ** 100,
    "3.0×10⁻⁸": 2 ** -25,
    "1,000": 1000,
  },
  {
    "28.54": reported,
    "27.94": reported,
    "300": DEFAULTS.trainSteps,
    "2.30": Math.log(10),
    "1,000": 1000,
    "4.1": reported,
    "4.6×10⁴": 2 ** (31 / 2),
    "6.9": 152 / 22,
    "152": reported,
    "110": reported,
    "1,202": reported,
    "7.93": reported,
    "6.43": reported,
    "10,000": reported,
    "0.45":
      100 *
      binomialShares(54)
        .slice(5, 18)
        .reduce((sum, share) => sum + share, 0),
    "360": heldOut.labels.length,
    "4.0": reported, // CC BY 4.0
    "100": 100, // points
  },
  {
    "8.9×10⁻¹⁶": 2 ** -50,
    "1000": 1 / LEFT,
    "10.0": memoryHorizon(sigma.value(0)),
    "0.731": sigma.value(1),
    "22.1": memoryHorizon(sigma.value(1)),
    "0.953": sigma.value(3),
    "142": gateTimeScale(3) * -Math.log(LEFT),
    "4.6": chronoBias(100),
    "100": 100, // the horizon of 4.6
    "6.61": reported,
    "8.70": reported,
    "110": reported,
  },
  {
    "7.4×10³": spread(4, 0.2, 60),
    "0.2": chapters[6].settings.spread!,
    "3,000": reported,
    "10,000": reported,
    "1.6": reported,
  },
];

const POWERS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

function value(text: string): number {
  const [digits, power] = text.replaceAll(",", "").split("×10");
  const exponent = [...(power ?? "⁰")].map((sign) => (sign === "⁻" ? "-" : POWERS.indexOf(sign))).join("");
  return Number(`${digits}e${exponent}`);
}

/** Half of the last digit that is written. */
function room(text: string): number {
  const [digits] = text.split("×10");
  const decimals = digits.includes(".") ? digits.split(".")[1].length : 0;
  return 0.5 * 10 ** -decimals * (value(text) / Number(digits.replaceAll(",", "")));
}

function texts(part: unknown, key = ""): string[] {
  if (typeof part === "string") return ["simple", "expert", "said", "label"].includes(key) ? [part] : [];
  if (Array.isArray(part)) return part.flatMap((one) => texts(one, key));
  if (part === null || typeof part !== "object") return [];
  return Object.entries(part).flatMap(([name, one]) => (name === "ask" ? [] : texts(one, name)));
}

function stated(text: string): string[] {
  const all = text.match(/\d[\d,]*(?:\.\d+)?(?:×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?/g) ?? [];
  const plain = all.map((one) => one.replace(/,$/, ""));
  return plain.filter((one) => /[.×,]|\d{3}/.test(one) && !/^(19|20)\d\d$/.test(one));
}

test.each(CHAPTERS.map(({ title }, at) => [title, at] as const))("%s: every number is held", (_, at) => {
  const found = new Set(texts(chapters[at].sections).flatMap(stated));
  expect([...found].sort()).toEqual(Object.keys(HELD[at]).sort());
  for (const [text, held] of Object.entries(HELD[at])) {
    if (held === reported) continue;
    expect(Math.abs(held - value(text)), `${text}, which is ${short(held, 6)}`).toBeLessThanOrEqual(
      room(text) * (1 + 1e-9),
    );
  }
});

const WORDS: Readonly<Record<string, number>> = { twenty: 20, fifty: 50, sixty: 60, "32": 32 };

test("a question has as many layers as its words say", () => {
  let checked = 0;
  for (const chapter of chapters) {
    for (const question of questionsOf(chapter)) {
      for (const ask of asksOf(question)) {
        const { depth, trainDepth } = settingsOf(chapter.settings, ask.settings);
        const layers = ["loss", "lesion", "length"].includes(ask.quantity) ? trainDepth : depth;
        const { simple, expert } = question.text satisfies Told;
        for (const text of [simple, expert]) {
          const named = /\b(twenty|fifty|sixty|32)\b[^.?]*\b(layers|blocks|lesions|matrices)\b/i.exec(text);
          if (!named) continue;
          expect(WORDS[named[1].toLowerCase()], text).toBe(layers);
          checked++;
        }
      }
    }
  }
  expect(checked).toBeGreaterThan(20);
});

test("twenty layers of sigmoids guess where two learn, with AdamW", { timeout: 120_000 }, async () => {
  for (const loss of await sigmoids(20, [0])) expect(Math.abs(loss - Math.log(10))).toBeLessThan(0.02);
  for (const loss of two) expect(loss).toBeLessThan(0.7);
});

test("what the experts' words derive", () => {
  // ReLU: half of the square is kept, and half of the slopes.
  const { second, slope } = moments(activation("relu"), 1);
  expect([second, slope]).toEqual([expect.closeTo(0.5, 12), expect.closeTo(0.5, 12)]);
  expect(batch).toBeCloseTo(Math.sqrt(slope / (second - moments(activation("relu"), 1).first ** 2)), 10);
  // tanh is 2 sigma(2u) - 1; two scaled skips of one half are least of all gates.
  expect(Math.tanh(0.3)).toBeCloseTo(2 * sigma.value(0.6) - 1, 14);
  const squares = Array.from({ length: 101 }, (_, at) => (at / 100) ** 2 + (1 - at / 100) ** 2);
  expect(squares.indexOf(Math.min(...squares))).toBe(50);
  // Sigmoids of large weights: chi grows like their size.
  const growth = [64, 128].map((deviation) => rate("sigmoid", deviation ** 2) ** 2);
  expect(growth[1] / growth[0]).toBeCloseTo(2, 1);
  // tanh at the edge: q falls like 1/(2l), the gradient like a power of depth, -1/2.
  const { q, chi } = propagate({
    activation: activation("tanh"),
    weightVariance: 1,
    biasVariance: 0,
    depth: 4000,
    q0: 1,
  });
  expect(2 * 4000 * q[4000]).toBeCloseTo(1, 1);
  const kept = (from: number, to: number) => chi.slice(from, to).reduce((sum, one) => sum + Math.log(one) / 2, 0);
  expect(kept(1000, 4000) / Math.log(4)).toBeCloseTo(-0.5, 1);
  // A square Gaussian matrix has a spectral norm of twice its deviation, and a random vector gets the deviation.
  expect(spread(4, 0.2, 60)).toBeGreaterThan(7000);
  expect(Math.round(Math.sqrt(spread(4, 0.2, 60)))).toBe(86);
  // A tent of three ReLUs ten times, and its linear pieces.
  const relu = (x: number) => Math.max(0, x);
  const tent = (x: number) => 2 * relu(x) - 4 * relu(x - 0.5) + 2 * relu(x - 1);
  const grid = Array.from({ length: 2 ** 12 + 1 }, (_, at) => at / 2 ** 12);
  const values = grid.map((x) => Array.from({ length: 10 }).reduce<number>((y) => tent(y), x));
  const slopes = values.slice(1).map((y, at) => y - values[at]);
  expect(1 + slopes.slice(1).filter((slope, at) => slope !== slopes[at]).length).toBe(2 ** 10);
  expect(152 / 19).toBe(8);
});
