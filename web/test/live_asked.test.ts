import { describe, expect, it } from "vitest";
import type { Summary } from "../src/live/api";
import { depthOf, fitted } from "../src/live/asked";
import { drawnTo, type Heat, lasting } from "../src/live/heat";
import { decode, type Place } from "../src/live/place";
import { stepsOf } from "../src/live/view";

function summaryOf(name: string, sites: readonly string[], more: Partial<Summary> = {}): Summary {
  const signals = ["gradient_rms", "signal_rms"].map((one) => ({ name: one, label: one.replace("_rms", "") }));
  const known = { name, signals, steps: 300, samples: 100, first_step: 0, last_step: 297, state: "ended" };
  const made = { ...known, has: ["loss", "heat"], sites: sites.map((one) => ({ name: one, kind: "", shape: [] })) };
  return { ...made, ...more } as unknown as Summary;
}

const LAYERS = Array.from({ length: 40 }, (_, i) => `layers.${i}`);
const run = summaryOf("plain", LAYERS);

function shown(query: string, summary = run, other: Summary | null = null) {
  const steps = stepsOf(other ? [summary, other] : [summary]);
  const { rows } = depthOf(summary, other);
  return fitted(decode(`#/run/abc?${query}`) as Place, { summary, other, steps, rows });
}

describe("what an address asks for", () => {
  it("is shown without a word where the run has it", () => {
    for (const query of [
      "",
      "signal=signal_rms&second=gradient_rms",
      "step=299&layer=39",
      "from=10&to=299&first=0&last=39",
    ]) {
      const found = shown(query);
      expect(found.told).toEqual([]);
      expect(found.place).toEqual(decode(`#/run/abc?${query}`));
    }
  });

  it("is told where the run has no such signal, with the one that is shown", () => {
    const { place, told } = shown("signal=foo&second=bar");
    expect(told).toEqual([
      "The address asks for the signal `foo`, which plain does not keep: shown is “gradient”.",
      "The address asks for the signal `bar`, which plain does not keep: shown is “signal”.",
    ]);
    expect(place.signals).toEqual([null, null]);
  });

  it("is told where the run has no such step, and chooses none", () => {
    const { place, told } = shown("step=99999999&layer=3");
    expect(told).toEqual([
      "The address asks for step 99,999,999. The run has 300 steps: no step is chosen, and the lines by layer are those of the last sample, step 297.",
    ]);
    expect([place.step, place.layer]).toEqual([null, 3]);
    const running = shown("step=5000", summaryOf("plain", LAYERS, { state: "running" }));
    expect(running.told[0]).toContain("The run has 300 steps so far: no step");
  });

  it("is told where the run has no such layer, and the nearest is shown", () => {
    const { place, told } = shown("layer=50");
    expect(told).toEqual(["The address asks for layer 50. Its layers are 0 to 39: shown is the nearest, `layers.39`."]);
    expect(place.layer).toBe(39);
  });

  it("is told where a stretch is not in the run", () => {
    expect(shown("from=500&to=900").told).toEqual([
      "The address asks for the steps 500 to 900. The run has 300 steps: shown are 0 to 299.",
    ]);
    expect(shown("first=30&last=60").told).toEqual([
      "The address asks for the layers 30 to 60. Its layers are 0 to 39: shown are 30 to 39.",
    ]);
  });

  it("is told of the layers that two runs have", () => {
    const other = summaryOf("other", LAYERS.slice(10, 20));
    const { place, told } = shown("layer=2", run, other);
    expect(told).toEqual([
      "The address asks for layer 2. The layers that are compared are 10 to 19: shown is the nearest, `layers.10`.",
    ]);
    expect(place.layer).toBe(10);
    expect(depthOf(run, summaryOf("other", ["a", "b"]))).toEqual({
      agreed: { first: 0, other: 0, count: 0 },
      rows: { from: 0, to: 40 },
    });
    expect(shown("second=bar", run, other).told).toEqual([]); // beside another run there is one signal
  });

  it("is told where a run has no maps", () => {
    const check = summaryOf("check", [], { has: [], signals: [], steps: 0, samples: 0, last_step: null });
    expect(shown("signal=foo&layer=3&step=2", check).told).toEqual([
      "This run has no maps by layer and step, where the address could choose `signal=foo`, `layer=3` and `step=2`: all of it is shown.",
    ]);
    const losses = summaryOf("train", [], { has: ["loss"], signals: [], samples: 0, last_step: null });
    expect(shown("step=500", losses).told).toEqual([
      "The address asks for step 500. The run has 300 steps: no step is chosen.",
    ]);
  });

  it("may reach as far as the last sample stands, which ends when another comes", () => {
    const short = summaryOf("short", LAYERS, { steps: 30, samples: 2, last_step: 20, state: "running" });
    expect(stepsOf([short]).to).toBe(40);
    for (const to of [35, 39, 45]) expect(shown(`from=10&to=${to}`, short).told).toEqual([]);
    expect(shown("from=10&to=60", short).told).toHaveLength(1);
  });
});

describe("the last sample of a run", () => {
  const heat = (steps: readonly number[], end: number): Heat =>
    ({ columns: Float64Array.of(...steps, end), spans: steps.map((one) => [one, one]) }) as unknown as Heat;
  const edges = (one: Heat) => [...(one.columns as Float64Array)];

  const run = (last_step: number | null, steps: number, state = "running") => ({ last_step, steps, state }) as Summary;

  it("stands until the run's end, so that a short run fills its map", () => {
    for (const state of ["running", "ended"]) {
      expect(edges(lasting(heat([0], 1), run(0, 8, state)))).toEqual([0, 8]);
      expect(edges(lasting(heat([0, 1], 2), run(1, 500, state)))).toEqual([0, 1, 500]);
    }
  });

  it("is not stretched where it is not there, or stands longer", () => {
    for (const one of [run(20, 30), run(0, 1), run(null, 9), run(20, 30, "ended")]) {
      expect(edges(lasting(heat([0], 1), one))).toEqual([0, 1]);
    }
    expect(edges(lasting(heat([0, 20], 40), run(20, 21)))).toEqual([0, 20, 40]);
  });

  it("stands no longer than a run that is over", () => {
    expect(edges(lasting(heat([0, 20], 40), run(20, 21, "ended")))).toEqual([0, 20, 21]);
    expect(edges(lasting(heat([0, 20], 40), run(20, 30, "stopped")))).toEqual([0, 20, 30]);
    expect(edges(lasting(heat([0, 20], 40), run(20, 20, "failed")))).toEqual([0, 20, 21]); // its update was left
  });

  it("is the step that a map is drawn to", () => {
    expect(drawnTo([heat([0, 20], 40), heat([5], 6)])).toBe(20);
    expect(drawnTo([])).toBe(null);
  });
});
