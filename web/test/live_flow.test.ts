import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { address, ask, type Row, value } from "../src/live/api";
import { aligned, curve, curvesOf, nearest, when, whyLogarithmic } from "../src/live/curves";
import { Kept, Latest } from "../src/live/latest";
import { shown } from "../src/live/listing";
import { LISTING, whole } from "../src/live/place";
import { logTicks, tickWords } from "../src/live/ticks";
import { typeset } from "../src/live/typeset";
import { seen, stepsOf, written, writtenDepth } from "../src/live/view";
import { ago, bareNames, power, quoted } from "../src/live/words";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("what is kept", () => {
  it("forgets what was used longest ago when it is full", () => {
    const kept = new Kept<string>(10, (text) => text.length);
    kept.set("a", "1234");
    kept.set("b", "1234");
    expect(kept.get("a")).toBe("1234");
    kept.set("c", "1234");
    expect(kept.get("b")).toBeUndefined();
    expect(kept.get("a")).toBe("1234");
    kept.set("d", "x".repeat(50)); // larger than all room: it alone is kept
    expect([kept.size, kept.get("d")?.length]).toEqual([1, 50]);
  });

  it("counts an answer once that is replaced", () => {
    const kept = new Kept<string>(10, (text) => text.length);
    for (let i = 0; i < 20; i++) kept.set("a", "12345");
    kept.set("b", "12345");
    expect(kept.size).toBe(2);
  });
});

function latest() {
  const asked: string[] = [];
  const answers = new Map<string, (answer: string) => void>();
  const refusals = new Map<string, (error: Error) => void>();
  const made = new Latest<string, string>(
    (question) =>
      new Promise((resolve, reject) => {
        asked.push(question);
        answers.set(question, resolve);
        refusals.set(question, reject);
      }),
    (question) => question,
    { wait: 80, kept: new Kept<string>(9) },
  );
  const got: string[] = [];
  const failed: unknown[] = [];
  const put = (question: string) =>
    made.ask(
      question,
      (answer) => got.push(answer),
      (error) => failed.push(error),
    );
  return { asked, answers, refusals, got, failed, put };
}

describe("questions that come fast", () => {
  it("are asked when they pause, the last one only", async () => {
    const { asked, answers, got, put } = latest();
    put("a");
    await vi.advanceTimersByTimeAsync(50);
    put("b");
    await vi.advanceTimersByTimeAsync(79);
    expect(asked).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    expect(asked).toEqual(["b"]);
    answers.get("b")!("B");
    await vi.advanceTimersByTimeAsync(0);
    expect(got).toEqual(["B"]);
  });

  it("drop an answer that comes after another question", async () => {
    const { answers, got, put } = latest();
    put("a");
    await vi.advanceTimersByTimeAsync(80);
    put("b");
    answers.get("a")!("A");
    await vi.advanceTimersByTimeAsync(80);
    answers.get("b")!("B");
    await vi.advanceTimersByTimeAsync(0);
    expect(got).toEqual(["B"]);
  });

  it("are answered at once where the answer is known, and are not asked twice", async () => {
    const { asked, answers, got, put } = latest();
    put("a");
    put("a");
    await vi.advanceTimersByTimeAsync(80);
    put("a");
    answers.get("a")!("A");
    await vi.advanceTimersByTimeAsync(0);
    put("a");
    expect([asked, got]).toEqual([["a"], ["A", "A"]]);
  });

  it("can be asked again after a failure", async () => {
    const { asked, refusals, failed, put } = latest();
    put("a");
    await vi.advanceTimersByTimeAsync(80);
    refusals.get("a")!(new Error("busy"));
    await vi.advanceTimersByTimeAsync(0);
    put("a");
    await vi.advanceTimersByTimeAsync(80);
    expect([asked, failed.length]).toEqual([["a", "a"], 1]);
  });
});

describe("answers of the server", () => {
  it("are asked for by address, without what was left out", () => {
    expect(address("runs/a/loss", { from: 0, to: null, bins: 5 })).toBe("api/1/runs/a/loss?from=0&bins=5");
    expect(["nan", "inf", "-inf", null, 0.5].map((one) => value(one as never))).toEqual([
      Number.NaN,
      Number.POSITIVE_INFINITY,
      Number.NEGATIVE_INFINITY,
      Number.NaN,
      0.5,
    ]);
  });

  it("that are refusals say why, in the server's words or in our own", async () => {
    const reply = (status: number, body: string) => vi.stubGlobal("fetch", async () => new Response(body, { status }));
    reply(200, '{"runs":[]}');
    expect(await ask("runs")).toEqual({ runs: [] });
    reply(404, '{"detail":"There is no such run."}');
    await expect(ask("runs/x")).rejects.toThrow("There is no such run.");
    reply(500, "<html>");
    await expect(ask("runs/x")).rejects.toThrow("The server answers 500.");
    vi.stubGlobal("fetch", async () => {
      throw new TypeError("failed to fetch");
    });
    await expect(ask("runs")).rejects.toThrow("does not answer");
  });
});

const row = (given: Partial<Row>): Row => ({
  id: "a",
  name: "a",
  title: "",
  kind: "watch",
  state: "ended",
  verdict: "healthy",
  until: "",
  steps: 0,
  depth: 0,
  loss: null,
  modified: 0,
  problem: "",
  ...given,
});

describe("the list", () => {
  const rows = [
    row({ name: "runs/10", modified: 3, verdict: "error", loss: 0.5 }),
    row({ name: "runs/9", modified: 1, verdict: "healthy", loss: "nan" }),
    row({ name: "deep", modified: 2, verdict: null, state: "running", loss: 0.1, title: "Relu" }),
  ];
  const names = (change: object) => shown(rows, { ...LISTING, ...change }).map(({ name }) => name);

  it("is in the order of a column, numbers in names as numbers, what is no number last", () => {
    expect(names({})).toEqual(["runs/10", "deep", "runs/9"]);
    expect(names({ sort: "name" })).toEqual(["deep", "runs/9", "runs/10"]);
    expect(names({ sort: "name", reversed: true })).toEqual(["runs/10", "runs/9", "deep"]);
    expect(names({ sort: "loss" })).toEqual(["deep", "runs/10", "runs/9"]);
    expect(names({ sort: "verdict" })).toEqual(["runs/10", "runs/9", "deep"]);
  });

  it("holds what has every word, and the verdict", () => {
    expect(names({ text: "RUNS 9" })).toEqual(["runs/9"]);
    expect(names({ text: "relu running" })).toEqual(["deep"]);
    expect(names({ verdict: "error" })).toEqual(["runs/10"]);
    expect(names({ text: "none such" })).toEqual([]);
  });
});

describe("what is seen of a run", () => {
  const summary = (given: object) =>
    ({ steps: 100, first_step: 0, last_step: 95, samples: 20, has: [], state: "running", ...given }) as never;
  const run = summary({});

  it("reaches as far as its last sample stands while it goes on, and ends where the run ends", () => {
    expect(stepsOf([run])).toEqual({ from: 0, to: 100 });
    for (const [state, to] of [
      ["running", 100],
      ["not ended", 100],
      ["ended", 96],
      ["stopped", 96],
      ["failed", 96],
    ]) {
      expect(stepsOf([summary({ steps: 96, state })])).toEqual({ from: 0, to });
    }
    // Two are seen as far as the one that goes further.
    expect(stepsOf([summary({ steps: 96, state: "ended" }), summary({ steps: 97, state: "ended" })]).to).toBe(97);
    expect(stepsOf([summary({ steps: 7, first_step: null, last_step: null, samples: 0 })])).toEqual({ from: 0, to: 7 });
    expect(stepsOf([summary({ has: ["held_out"] })])).toEqual({ from: 0, to: 101 });
    expect(stepsOf([])).toEqual({ from: 0, to: 1 });
  });

  it("follows a run that grows where its end was seen, and stays where it was not", () => {
    const limits = { from: 0, to: 100 };
    const place = { ...whole("a"), ...written({ from: 40, to: 100 }, limits) };
    expect([place.from, place.to]).toEqual([40, null]);
    expect(seen(place, { from: 0, to: 160 })).toEqual({ from: 40, to: 160 });
    expect(seen({ ...place, to: 59 }, { from: 0, to: 160 })).toEqual({ from: 40, to: 60 });
    expect(seen({ ...place, from: 5000 }, limits)).toEqual({ from: 99, to: 100 });
    expect(writtenDepth(limits, limits)).toEqual({ first: null, last: null });
    expect(writtenDepth({ from: 3, to: 9 }, limits)).toEqual({ first: 3, last: 8 });
  });
});

describe("curves", () => {
  const binned = {
    first: [0, 10, 20],
    last: [9, 19, 20],
    low: [1, null, 0.01],
    mean: [2, null, 0.01],
    high: [3, null, 0.01],
    count: [10, 10, 1],
    nonfinite: [0, 10, 0],
  };
  const one = curve(binned, "loss", 0, false);

  it("stand in the middle of their bins, and say what is not drawn", () => {
    expect(one.x).toEqual([5, 15, 20]);
    expect([one.merged, one.broken]).toEqual([true, 10]);
    expect(whyLogarithmic([one])).toBe("the largest loss is more than 100 times the smallest");
    expect(whyLogarithmic([{ ...one, low: [1, 0, 0.01] }])).toBe("");
    expect(whyLogarithmic([])).toBe("");
  });

  it("are drawn by their logarithms where one spike would press all others into a line", () => {
    const steps = Array.from({ length: 101 }, (_, step) => step);
    const drawn = (spike: number, level: number) => {
      const values = steps.map((step) => (step === 50 ? spike : level + 1 - step / 100));
      const counts = steps.map(() => 1);
      const nonfinite = steps.map(() => 0);
      const held = { first: steps, last: steps, low: values, mean: values, high: values, count: counts, nonfinite };
      return whyLogarithmic([curve(held, "loss", 0, false)]);
    };
    expect(drawn(60, 1)).toBe("nine in ten losses lie within a tenth of the range");
    expect(drawn(3, 1)).toBe("");
    expect(drawn(60, 30)).toBe(""); // the logarithm would show no more
    expect(drawn(60, -1)).toBe("");
  });

  it("say of which steps a mean is, and not that it is of one of them", () => {
    expect(one.spans.map(when)).toEqual(["steps 0 to 9", "steps 10 to 19", "step 20"]);
  });

  it("are one of the loss, or one of each optimizer that has losses of its own", () => {
    const none = { ...binned, first: [], last: [] };
    const plain = { training: binned, held_out: none, by_optimizer: [] };
    const apart = {
      ...plain,
      by_optimizer: ["optimizer 1 of 2 (Adam)", "optimizer 2 of 2 (Adam)"].map((name) => ({ name, bins: binned })),
    };
    const told = (...asked: Parameters<typeof curvesOf>) =>
      curvesOf(...asked).map((one) => [one.label, one.colour, one.dashed]);
    expect(told({ ...plain, held_out: binned })).toEqual([
      ["loss", 0, false],
      ["held out", 1, false],
    ]);
    expect(told({ ...plain, held_out: binned }, "b", 1)).toEqual([
      ["loss, b", 1, false],
      ["held out, b", 1, true],
    ]);
    expect(told(apart)).toEqual([
      ["loss of optimizer 1 of 2 (Adam)", 0, false],
      ["loss of optimizer 2 of 2 (Adam)", 1, false],
    ]);
    expect(told(apart, "b", 1).map((one) => one[1])).toEqual([1, 3]);
    expect(told({ ...plain, training: none })).toEqual([]);
  });

  it("are laid side by side by step", () => {
    const other = curve({ ...binned, first: [5, 40, 50], last: [5, 40, 50] }, "other", 1, false);
    const { x, columns } = aligned([one, other]);
    expect(x).toEqual([5, 15, 20, 40, 50]);
    expect(columns[0]).toEqual([2, null, 0.01, null, null]);
    expect(columns[3]).toEqual([2, null, null, null, 0.01]);
    expect(nearest(x, 17)).toBe(1);
    expect(nearest(x, 18)).toBe(2);
  });
});

describe("words", () => {
  it("say times, powers and commands", () => {
    expect([0, 42, 60, 7300, 200_000].map((passed) => ago(1e9 - passed, 1e9))).toEqual([
      "now",
      "42 seconds ago",
      "1 minute ago",
      "2 hours ago",
      "2 days ago",
    ]);
    expect([power(-3), power(Number.NaN), power(-400.5)]).toEqual(["0.001", "—", "3.16e-401"]);
    expect([quoted("runs/a-1"), quoted("my run"), quoted("it's;rm")]).toEqual([
      "runs/a-1",
      "'my run'",
      "'it'\\''s;rm'",
    ]);
  });
});

describe("names and ticks of an axis", () => {
  it("leave out what all names share, as the report does", () => {
    expect(bareNames(["model.layers.0.block", "model.layers.1.block"])).toEqual(["0", "1"]);
    expect(bareNames(["first", "layers.0", "head"])).toEqual(["first", "layers.0", "head"]);
    expect(bareNames(["a"])).toEqual(["a"]);
    expect(bareNames([])).toEqual([]);
  });

  it("are few over many decades, and there are some over one", () => {
    expect(logTicks(0.9, 2e24).map((tick) => tickWords(tick, true))).toEqual(["1", "10⁵", "10¹⁰", "10¹⁵", "10²⁰"]);
    expect(logTicks(0.15, 3)).toEqual([0.2, 0.5, 1, 2]);
    expect(logTicks(0.22, 35)).toEqual([0.3, 1, 3, 10, 30]);
    expect(tickWords(0.25, true)).toBe("0.25");
  });

  it("sentences are set as the report sets them, and stay text", () => {
    expect(typeset("by 10^20.8 in all; 2^(depth/2) <= 1: `a^b <i>`")).toEqual([
      { kind: "text", text: "by 10" },
      { kind: "power", text: "20.8" },
      { kind: "text", text: " in all; 2" },
      { kind: "power", text: "depth/2" },
      { kind: "text", text: " ≤ 1: " },
      { kind: "code", text: "a^b <i>" },
    ]);
  });
});
