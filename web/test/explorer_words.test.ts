/** Sentences and shares of the tabs that train and go through time. */

import { describe, expect, it } from "vitest";
import { type MemoryOptions, remember } from "../src/engine/recurrent/memory";
import { PYTORCH_GAIN } from "../src/engine/recurrent/unrolled";
import { DEFAULTS } from "../src/explorer/settings";
import { memoryOptions, Remembering } from "../src/explorer/time/remembering.svelte";
import { ofBias, readings, series } from "../src/explorer/time/words";
import { binomialShares, central, every, reading, sweepReading, together } from "../src/explorer/train/plan";
import type { Worker } from "../src/explorer/train/trainer.svelte";

const report = (step: number, loss: number, accuracy: number) => {
  const found = { loss, accuracy };
  return { step, trained: found, heldOut: found };
};

describe("training in words", () => {
  it("takes for learned what guessing knows once in a thousand times", () => {
    const knows = (accuracy: number) =>
      reading([{ name: "plain", reports: [report(6, 2.4, accuracy)] }], 4).includes("learned nothing yet");
    expect([knows(0.1), knows(0.15), knows(0.151)]).toEqual([true, true, false]);
    // More than 54 of 360 digits, each guessed with a chance of 0.1.
    let [one, below] = [0.9 ** 360, 0];
    for (let right = 0; right <= 54; right++) {
      below += one;
      one *= ((360 - right) / (right + 1)) * (0.1 / 0.9);
    }
    expect(1 - below).toBeCloseTo(0.001, 3);
  });

  it("says what has learned nothing, also where there is no number", () => {
    const runs = [
      { name: "plain", reports: [report(10, 2.31, 0.1)] },
      { name: "residual", reports: [report(10, 0.05, 0.9)] },
      { name: "highway", reports: [report(10, Number.NaN, 0.1)] },
      { name: "dense", reports: [] },
    ] as const;
    const text = reading(runs, 48);
    expect(text).toContain(
      "At depth 48, after 10 steps, plain has a training loss of 2.31 and knows 10\u00a0% of the held-out digits",
    );
    expect(text).toContain("highway has a training loss of no finite number");
    expect(text).toContain("plain and highway have learned nothing yet");
    expect(reading([], 3)).toBe("");
    // A network that is often right and very sure where it is wrong has a loss above guessing's, and has learned.
    const soon = [{ name: "residual", reports: [report(6, 6.24, 0.208)] }] as const;
    expect(reading(soon, 48)).toBe(
      "At depth 48, after 6 steps, residual has a training loss of 6.24 and knows 20.8\u00a0% of the held-out digits.",
    );
  });

  it("compares at the last step that all have reached, or gives each its own", () => {
    const plain = { name: "plain", reports: [report(6, 2.31, 0.1), report(12, 2.3, 0.1)] } as const;
    const residual = { name: "residual", reports: [report(6, 0.5, 0.9)] } as const;
    const waiting = { name: "dense", reports: [] } as const;
    expect(together([plain, residual, waiting])).toBe(6);
    expect(reading([plain, residual], 4)).toMatch(/^At depth 4, after 6 steps, plain has a training loss of 2.31 /);
    const resumed = { name: "residual", reports: [report(9, 0.5, 0.9)] } as const;
    expect(together([plain, resumed])).toBeUndefined();
    expect(reading([plain, resumed], 4)).toMatch(
      /^At depth 4, plain, after 12 steps, has .* residual, after 9 steps, has/,
    );
  });

  it("names degradation where the deepest is worse on what it trains on", () => {
    const swept = (losses: number[]) =>
      losses.map((loss, i) => ({ name: "plain", depth: 2 ** (i + 1), last: report(1, loss, 0.5) }) as const);
    expect(sweepReading(swept([0.1, 0.05, 2.3]))).toEqual([
      "plain: least training loss 0.05 at depth 4; at depth 8 it is 2.3, 46 times as much, on the digits that it trains on: degradation.",
    ]);
    expect(sweepReading(swept([0.1, 0.05]))).toEqual([
      "plain: least training loss 0.05 at depth 4; at depth 4 it is 0.05.",
    ]);
    expect(sweepReading(swept([0.1]))).toEqual([]);
  });

  it("reports about fifty times", () => {
    expect([1, 20, 300, 5000].map(every)).toEqual([1, 1, 6, 100]);
  });
});

describe("shares of paths", () => {
  it("of the paths are a binomial, and the central part is where it says", () => {
    const shares = binomialShares(4);
    expect([...shares]).toEqual([1, 4, 6, 4, 1].map((count) => count / 16));
    expect(binomialShares(128).reduce((sum, share) => sum + share, 0)).toBeCloseTo(1, 12);
    expect(central(shares, 0.8)).toEqual([1, 3]);
    expect(central(shares, 0.9)).toEqual([0, 4]);
    expect(central(Float64Array.of(1, 0, 0), 0.9)).toEqual([0, 0]);
  });
});

describe("memory in words", () => {
  const settings = { ...DEFAULTS, timeSteps: 60, units: 12 };
  const found = (cell: "rnn" | "lstm" | "gru", more: Partial<MemoryOptions> = {}) => {
    const layer = { ...memoryOptions(settings, cell), ...more };
    return { cell, memory: remember(layer), precision: layer.precision ?? "float64" } as const;
  };

  it("has PyTorch's own gain where the slider stands at it, and no forget bias without a gate", () => {
    expect(memoryOptions(settings, "rnn")).toMatchObject({ gain: PYTORCH_GAIN, steps: 60 });
    expect(memoryOptions(settings, "rnn").forgetBias).toBeUndefined();
    expect(memoryOptions({ ...settings, recurrentGain: 0.6 }, "gru")).toMatchObject({ gain: 0.6, forgetBias: 1 });
  });

  it("says where 1/1000 is left, what does not fall, and what has underflowed", () => {
    const [reached] = readings([found("rnn")]);
    expect(reached).toMatch(/^RNN: 1\/1000 of the gradient is left [\d.]+ steps back, 0\.\d+ per step\.$/);
    const [kept] = readings([found("lstm", { forgetBias: 20 })]);
    expect(kept).toMatch(
      /^LSTM: the gradient grows: 60 steps back it is [\d.,]+ times that at the last state \(1\.\d+ per/,
    );
    const { memory } = found("rnn", { steps: 4 });
    const curve = (...values: number[]) => ({
      ...memory,
      horizon: Number.POSITIVE_INFINITY,
      curve: Float64Array.of(...values),
    });
    const said = (values: number[], slope: number) =>
      readings([{ cell: "rnn", memory: { ...curve(...values), slope }, precision: "float64" }])[0];
    expect(said([1, 0.5, 0.5], 0)).toBe(
      "RNN: the gradient does not fall for good: 2 steps back it is 0.5 times that at the last state (1 per step).",
    );
    expect(said([1, 1e300, Number.POSITIVE_INFINITY], 690)).toContain("grows beyond all numbers");
    const [later] = readings([found("gru", { forgetBias: 3.5, steps: 30 })]);
    expect(later).toMatch(/^GRU: more than 1\/1000 is left after all 30 steps, and 1\/1000 would be after [\d.]+/);
    const [gone] = readings([found("rnn", { gain: 0.01, precision: "float32" })]);
    expect(gone).toMatch(/From \d+ steps back on the gradient is zero: it has left the range of float32\.$/);
    expect(ofBias(0)).toContain("keeps 0.5 per step: 1/1000 after 9.97 steps");
  });

  it("draws measured and theory, and for experts gates and parts", () => {
    const cells = [found("rnn"), found("lstm")];
    expect(series(cells, false).map(({ label }) => label)).toEqual(["RNN", "RNN, theory", "LSTM", "LSTM, theory"]);
    expect(series(cells, true).map(({ label }) => label)).toEqual([
      "RNN",
      "RNN, theory",
      "RNN, independent weights",
      "LSTM",
      "LSTM, theory",
      "LSTM, gates alone",
      "LSTM, hidden state",
      "LSTM, cell",
    ]);
  });

  it("computes the newest settings only, and nothing twice", async () => {
    const asked: MemoryOptions[] = [];
    const worker = {
      ask({ layer }: { layer: MemoryOptions }) {
        asked.push(layer);
        return {
          id: 0,
          answer: Promise.resolve({ type: "remembered", id: 0, memory: remember(layer), milliseconds: 1 }),
        };
      },
      cancel() {},
      close() {},
    } as unknown as Worker;
    const remembering = new Remembering(worker);
    const idle = async () => {
      do await new Promise((resolve) => setTimeout(resolve));
      while (remembering.computing);
    };
    for (const timeSteps of [20, 21, 22, 23]) remembering.update({ ...settings, timeSteps });
    await idle();
    expect(asked.map(({ steps, cell }) => `${cell} ${steps}`)).toEqual(["rnn 20", "rnn 23", "lstm 23", "gru 23"]);
    expect(remembering.found.map(({ memory }) => memory.curve.length)).toEqual([24, 24, 24]);
    remembering.update({ ...settings, timeSteps: 23, cells: ["gru"] });
    await idle();
    expect(asked).toHaveLength(4);
    expect(remembering.found.map(({ cell }) => cell)).toEqual(["gru"]);
  });
});
