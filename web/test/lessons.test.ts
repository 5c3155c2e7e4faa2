/** Lessons: their shape, their links, what they judge, and that every question has an answer. */

import { expect, test } from "vitest";
import { activationNames } from "../src/engine/activation";
import { DEFAULTS, decode, encode, type Settings } from "../src/explorer/settings";
import { every, median } from "../src/explorer/train/plan";
import { keyOf, readAnswers, readPlayed, writeAnswers, writePlayed } from "../src/lessons/answers";
import { CHAPTERS } from "../src/lessons/chapters/index";
import { FORMULAS } from "../src/lessons/formulas";
import { answer, asksOf, judge, said } from "../src/lessons/judge";
import { drawsOf, measure, neurons, sample, settingsOf } from "../src/lessons/measure";
import { inExplorer, shownAfter, untold } from "../src/lessons/playing";
import { reach } from "../src/lessons/reach";
import { SOURCES } from "../src/lessons/sources";
import {
  type Ask,
  type BandQuestion,
  type Block,
  type ChoiceQuestion,
  type NumberQuestion,
  questionsOf,
} from "../src/lessons/types";
import { short } from "../src/page/number";
import { counts, laboratory } from "./lesson_lab";

const chapters = await Promise.all(CHAPTERS.map(({ load }) => load()));
const told = { simple: "", expert: "" };
const NUMBER: NumberQuestion = {
  id: "a",
  kind: "number",
  text: told,
  why: told,
  ask: { quantity: "slope" },
  low: 0.01,
  high: 10,
  unit: "",
};

/** Options that the texts' words are about; the page does not know them. */
const WINNERS: Readonly<Record<string, number>> = {
  "1b": 2,
  "2c": 2,
  "3b": 2,
  "3c": 1,
  "3d": 1,
  "4b": 2,
  "4d": 0,
  "5b": 1,
  "6a": 1,
  "6b": 1,
  "6e": 1,
  "6g": 2,
  "7b": 0,
  "7c": 1,
  "7d": 1,
};

test("there are seven chapters, and their list says how much they ask", () => {
  expect(CHAPTERS.length).toBe(7);
  for (const [at, chapter] of chapters.entries()) {
    const ids = questionsOf(chapter).map(({ id }) => id);
    expect(ids.length, CHAPTERS[at].title).toBe(CHAPTERS[at].questions);
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids.every((id) => /^\w+$/.test(id))).toBe(true);
    expect(chapter.sections.some(({ drawing }) => drawing !== undefined)).toBe(true);
    expect(chapter.sources.length).toBeGreaterThan(0);
  }
});

test("every formula is used, typeset, and read out", () => {
  const blocks: Block[] = chapters.flatMap(({ sections }) => sections.flatMap((section) => section.blocks));
  const used = blocks.flatMap((block) => (block.kind === "formula" ? [block.name as string] : []));
  expect(new Set(used)).toEqual(new Set(Object.keys(FORMULAS)));
  for (const { mathml, alt } of Object.values(FORMULAS)) {
    expect(mathml).toMatch(/^<math .*<\/math>$/s);
    expect(mathml).not.toMatch(/merror| style=| class=/);
    expect(alt.length).toBeGreaterThan(20);
  }
});

test("every source is named by a chapter, and its number is one of arXiv", () => {
  const named = new Set(chapters.flatMap(({ sources }) => sources));
  expect([...named].sort()).toEqual(Object.keys(SOURCES).sort());
  for (const source of Object.values(SOURCES)) {
    if ("arxiv" in source) expect(source.arxiv).toMatch(/^\d{4}\.\d{4,5}$/);
  }
});

test("what is set in a lesson is a setting, and its figure and the explorer show it", () => {
  for (const chapter of chapters) {
    for (const question of questionsOf(chapter)) {
      for (const ask of asksOf(question)) {
        const settings = settingsOf(chapter.settings, ask.settings);
        const { settings: back, refused } = decode(encode(settings));
        expect(refused).toEqual([]);
        expect(back).toEqual(settings);
        const opened = { ...DEFAULTS, ...inExplorer([ask], chapter.settings) };
        for (const name of Object.keys(ask.settings ?? {})) {
          expect(opened[name as keyof Settings]).toEqual(ask.settings?.[name as keyof Settings]);
        }
        if ("connection" in ask) expect(opened.connections).toContain(ask.connection);
        expect(opened.tab).not.toBe("lessons");
      }
      const shown = settingsOf(chapter.settings, shownAfter(question, 0, chapter.settings));
      for (const ask of asksOf(question)) {
        if ("connection" in ask) expect(shown.connections).toContain(ask.connection);
      }
    }
  }
});

test("predictions come back from a link, and what is none is left out", () => {
  const answers = new Map([
    [keyOf(1, "a"), 0.25],
    [keyOf(2, "b"), 3e-13],
    [keyOf(7, "d"), 1],
  ]);
  expect(readAnswers(writeAnswers(answers))).toEqual(answers);
  expect(decode(encode({ ...DEFAULTS, answers: writeAnswers(answers) })).settings.answers).toBe(writeAnswers(answers));
  expect(readAnswers("1.a:,x.b:1,1.c:1e999,2.b:0.5")).toEqual(new Map([["2.b", 0.5]]));
  expect(decode("answers=<script>").refused.length).toBe(1);
});

test("settings of a figure come back from a link, also where they are the explorer's own", () => {
  const part: Partial<Settings> = { gain: 8, connections: ["plain", "highway"], norm: "none", preActivation: false };
  const text = writePlayed(part);
  expect(readPlayed(text)).toEqual({ part, refused: [] });
  expect(decode(encode({ ...DEFAULTS, lesson: text })).settings.lesson).toBe(text);
  expect(readPlayed("gain:900;depth:7").part).toEqual({ gain: DEFAULTS.gain, depth: 7 });
  expect(readPlayed("gain:900").refused.length).toBe(1);
  expect(readPlayed("tab:train;answers:1;lesson:2").part).toEqual({});
});

test("a number is judged by its factor", () => {
  expect(judge(NUMBER, 0.25, [0.25]).right).toBe(true);
  expect(judge(NUMBER, 0.3, [0.25]).right).toBe(true);
  expect(judge(NUMBER, 0.5, [0.25])).toMatchObject({
    right: false,
    words: expect.stringContaining("too high by a factor of 2."),
  });
  expect(judge(NUMBER, 0.01, [5]).words).toContain("too low by a factor of 500.");
  // Fifty layers at 1.5 in the place of 1.22 are 30,000 times as much.
  const rate = { ...NUMBER, unit: "per layer", ask: { quantity: "rate", connection: "plain" } } as const;
  expect(judge(rate, 1.3, [1.22]).right).toBe(true);
  expect(judge(rate, 1.5, [1.22]).words).toBe(
    "It is 1.22 per layer; you said 1.5 per layer. That is too high by a factor of 1.2 in each layer.",
  );
  expect([5.19, 0.5, 1].map((value) => said(value, "of the last layer's"))).toEqual([
    "5.19 times the last layer's",
    "0.5 of the last layer's",
    "1 of the last layer's",
  ]);
  expect(judge(NUMBER, 1, [1e-12]).words).toContain("about 10¹², a one with 12 zeros");
  expect(judge(NUMBER, 1, [Number.POSITIVE_INFINITY]).words).toContain("without end");
  expect(judge({ ...NUMBER, unit: "steps" }, 1, [2]).words).toContain("you said 1 step.");
});

test("the right option is the one whose number wins", () => {
  const ask = { quantity: "slope" } as const;
  const options = ["one", "two", "three"].map((label) => ({ label, ask }));
  const choice: ChoiceQuestion = { ...NUMBER, kind: "choice", options, wins: "largest" };
  expect(judge(choice, 1, [1, 30, 2]).right).toBe(true);
  expect(judge(choice, 0, [1, 30, 2]).words).toContain("“two”, with 30");
  expect(judge({ ...choice, wins: "smallest" }, 0, [1, 30, 2]).right).toBe(true);
  expect(judge({ ...choice, wins: "nearest" }, 2, [1e-3, 30, 2]).right).toBe(true);
  const bands = [
    { label: "small", below: 1 },
    { label: "large", below: Number.POSITIVE_INFINITY },
  ];
  const band: BandQuestion = { ...NUMBER, kind: "band", bands };
  expect(judge(band, 1, [1]).right).toBe(true);
  expect(judge(band, 1, [0.5]).words).toContain("“small”");
});

test("neurons in a row have the slope that a difference has", () => {
  for (const activation of activationNames) {
    const settings = settingsOf({ activation, gain: 1.7, depth: 3 });
    for (const x of [-1.31, 0.2, 0.77]) {
      const h = 1e-6;
      const difference = (neurons(settings, x + h).value - neurons(settings, x - h).value) / (2 * h);
      expect(neurons(settings, x).slope).toBeCloseTo(difference, 6);
    }
  }
  expect(median(Float64Array.of(3, 1, 2))).toBe(2);
  expect(median(Float64Array.of(4, 1, 2, 3))).toBe(2.5);
});

test("a number is the middle one of many draws, of which half are no farther than said", async () => {
  const lab = laboratory();
  const [, chapter] = chapters;
  const question = questionsOf(chapter).find(({ id }) => id === "c") as BandQuestion;
  const { value, low, high, seed, draws, inner } = await sample(question.ask, chapter.settings, lab);
  expect([draws, inner]).toEqual([99, 49]);
  const all: number[] = [];
  for (let draw = 0; draw < draws; draw++)
    all.push(await measure(question.ask, { ...chapter.settings, seed: draw }, lab));
  expect(all[seed]).toBe(value); // the figure with that seed shows this number
  expect(all.filter((one) => one < value).length).toBe(49);
  expect(all.filter((one) => one >= low && one <= high).length).toBe(49);
  expect(all[0]).toBeGreaterThan(1.2 * value); // the first one alone would have been off
  const { words, spread, seeds } = await answer(question, 2, chapter.settings, lab);
  expect(words).toContain(short(value));
  expect(spread).toContain(
    `middle one of 99 draws of the random numbers; 49 of them lie between ${short(low, 2)} and ${short(high, 2)}`,
  );
  expect(shownAfter(question, 2, chapter.settings, seeds[0])).toEqual({ gain: 20, seed });
  expect(inExplorer(asksOf(question), chapter.settings, seeds[0])).toMatchObject({ gain: 20, seed });
  const slope = await answer(questionsOf(chapters[0])[0], 1, chapters[0].settings, lab);
  expect([slope.spread, slope.found]).toEqual(["", [0.25]]);
});

test("large networks are drawn less often, and what takes long to make is drawn nine times", () => {
  const plain = (settings: Partial<Settings>) => drawsOf({ quantity: "kept", connection: "plain", settings }, {});
  expect([plain({ depth: 20 }), plain({ depth: 100 }), plain({ depth: 1000 })]).toEqual([99, 41, 9]);
  const divided: Ask = { quantity: "carried", connection: "plain", over: "plain", settings: { depth: 100 } };
  expect(drawsOf(divided, {})).toBe(21);
  expect(drawsOf({ quantity: "horizon", cell: "rnn" }, {})).toBe(9);
  expect(drawsOf({ quantity: "slope" }, {})).toBe(1);
});

test("no figure tells at first what is asked of it, and each tells it when all is predicted", () => {
  const first = chapters.map((chapter) => untold(questionsOf(chapter), chapter.settings, settingsOf(chapter.settings)));
  // Questions about other settings than those that a chapter starts with are told by nothing that is drawn.
  const own = chapters.map(({ settings }, at) =>
    questionsOf(chapters[at])
      .flatMap(asksOf)
      .filter((ask) => ask.quantity !== "reach")
      .filter((ask) => encode(settingsOf(settings, ask.settings)) === encode(settingsOf(settings))),
  );
  for (const [at, asks] of own.entries()) expect(first[at]).toEqual(expect.arrayContaining(asks));
  expect(first.map((asks) => asks.length)).toEqual([1, 1, 3, 2, 5, 4, 5]);
  for (const chapter of chapters) {
    expect(untold([], chapter.settings, settingsOf(chapter.settings))).toEqual([]);
    for (const question of questionsOf(chapter)) {
      for (const ask of asksOf(question)) {
        if (ask.quantity === "reach") continue; // no figure has it
        const shown = { ...settingsOf(chapter.settings, ask.settings), seed: 4, view: "signal", expert: true } as const;
        expect(untold([question], chapter.settings, shown)).toContain(ask);
      }
    }
  }
});

test("a figure tells no more for a setting that its line does not depend on", () => {
  const [gates, streams, many] = [chapters[5], chapters[6], chapters[1]];
  const names = (at: typeof gates, part: Partial<Settings>) =>
    untold(questionsOf(at), at.settings, settingsOf(at.settings, part)).map((ask) => ask.quantity);
  // The bias of the gates is none of a recurrent cell's, the activation none of a product of mixing matrices.
  expect(names(gates, {}).filter((one) => one === "horizon").length).toBe(4);
  expect(names(gates, { gateBias: 0 }).filter((one) => one === "horizon").length).toBe(4);
  expect(names(streams, { activation: "tanh" })).toEqual(["gain", "gain", "rows", "columns"]);
  expect(names(many, { forgetBias: 3 })).toEqual(["kept"]);
  // Of its own settings it does.
  expect(names(gates, { forgetBias: 3 })).toEqual(["horizon"]); // the plain cell has no such gate
  expect(names(streams, { spread: 0.1 })).toEqual(names(streams, { spread: 0.3 }));
  expect(names(many, { gain: 3 })).toEqual([]);
});

test("convolutions reach as far as their taps and distances say, by a gradient that is sent back", () => {
  const law = (taps: number, distances: readonly number[]) =>
    1 + distances.reduce((sum, distance) => sum + (taps - 1) * distance, 0);
  for (const distances of [[], [1], [1, 1, 1, 1], [1, 2, 4, 8, 16, 32, 64, 128], [5, 1, 3], Array(300).fill(1)]) {
    for (const taps of [1, 2, 3, 17]) expect(reach(taps, distances)).toBe(law(taps, distances));
  }
  expect([reach(3, Array(8).fill(1)), reach(3, Array(50).fill(1))]).toEqual([17, 101]);
});

test("a correction that gives an answer away waits for the question's prediction", () => {
  for (const [at, chapter] of chapters.entries()) {
    const ids = questionsOf(chapter).map(({ id }) => id);
    for (const { blocks } of chapter.sections) {
      for (const [place, block] of blocks.entries()) {
        if (block.kind !== "correction" || block.after === undefined) continue;
        expect(ids, CHAPTERS[at].title).toContain(block.after);
        // It stands below its question: the page says so.
        const asked = blocks.slice(0, place).some((one) => one.kind === "question" && one.question.id === block.after);
        expect(asked, block.said).toBe(true);
      }
    }
  }
  const waiting = chapters.flatMap(({ sections }) =>
    sections.flatMap(({ blocks }) => blocks.filter((block) => block.kind === "correction" && block.after)),
  );
  expect(waiting.length).toBe(6);
});

test("what is asked twice is computed once", async () => {
  const lab = laboratory();
  const [chapter] = [chapters[1]];
  const [{ ask }] = questionsOf(chapter) as NumberQuestion[];
  const before = { ...counts };
  const [one, two] = await Promise.all([measure(ask, chapter.settings, lab), measure(ask, chapter.settings, lab)]);
  expect(one).toBe(two);
  expect(counts.made - before.made).toBe(1);
  expect(counts.asked - before.asked).toBe(2); // configure and run
});

test("the first of fifty dense layers gets three to four times the gradient of the last, whatever the seed", async () => {
  const gates = chapters.find(({ settings }) => settings.gateBias !== undefined)!;
  const { ask } = questionsOf(gates).find(({ id }) => id === "b") as BandQuestion;
  const lab = laboratory();
  for (let seed = 0; seed < 8; seed++) {
    const kept = Math.round(await measure(ask, { ...gates.settings, seed }, lab));
    expect([3, 4], `seed ${seed}`).toContain(kept);
  }
});

test("every question has an answer, and no question can be answered by leaving the slider", {
  timeout: 240_000,
}, async () => {
  const lab = laboratory();
  for (const [at, chapter] of chapters.entries()) {
    for (const question of questionsOf(chapter)) {
      const start = question.kind === "number" ? question.low : 0;
      const { found, right } = await answer(question, start, chapter.settings, lab);
      const name = `${at + 1}${question.id}`;
      expect(found.length, name).toBe(asksOf(question).length);
      for (const value of found) expect(Number.isNaN(value), name).toBe(false);
      if (question.kind === "number") {
        expect(right, name).toBe(false);
        expect(found[0], name).toBeGreaterThan(question.low);
        expect(found[0], name).toBeLessThan(question.high);
      }
      if (question.kind === "band") expect(question.bands.at(-1)!.below, name).toBeGreaterThan(found[0]);
    }
  }
});

test("other random weights give the same option, so that the words about it hold", { timeout: 120_000 }, async () => {
  const lab = laboratory();
  for (const [at, chapter] of chapters.entries()) {
    for (const question of questionsOf(chapter)) {
      const trains = asksOf(question).some(({ quantity }) => ["loss", "lesion", "length"].includes(quantity));
      if (question.kind === "number" || trains) continue;
      // Each of these alone, which is more than that the middle ones of nine do.
      for (const seed of [100, 101, 102, 103]) {
        const found: number[] = [];
        for (const ask of asksOf(question)) found.push(await measure(ask, { ...chapter.settings, seed }, lab));
        const { place } = judge(question, 0, found);
        expect(place, `${at + 1}${question.id}, seed ${seed}`).toBe(WINNERS[`${at + 1}${question.id}`]);
      }
    }
  }
});

test("a lesson's training loss is over as many steps as that of the tab that trains, which it opens", async () => {
  const trainSteps = 100;
  const settings = settingsOf({ trainDepth: 1, trainWidth: 4, trainSteps });
  const { reports } = await laboratory().trained(settings, "plain");
  expect(reports[1].step - reports[0].step).toBe(every(trainSteps));
});
