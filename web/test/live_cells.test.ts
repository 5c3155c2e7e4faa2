import { describe, expect, it } from "vitest";
import {
  type Cells,
  extent,
  INFINITE,
  indexOf,
  marked,
  markOf,
  NAN,
  paint,
  ratio,
  spread,
  ZERO,
} from "../src/figures/cells";
import { balanced, DIVERGING, RISING, span, steps } from "../src/figures/ramp";
import { agreement, bytes, cellsOf, floats, heatOf, shifted, standing, versionOf } from "../src/live/heat";
import { byLayer, overSteps, restOf } from "../src/live/profile";

const encode = (held: Uint8Array) => btoa(String.fromCharCode(...held));

function floats32(...values: number[]): string {
  const held = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, i) => {
    held.setFloat32(4 * i, value, true);
  });
  return encode(new Uint8Array(held.buffer));
}

const answer = {
  steps: [0, 20, 40],
  last_steps: [0, 20, 60],
  sites: [0, 2],
  last_sites: [1, 2],
  mean: floats32(-1, -2, -3, Number.NaN, -5, Number.NaN),
  low: floats32(-1, -2, -4, Number.NaN, -5, Number.NaN),
  high: floats32(-1, -2, -2, Number.NaN, -5, Number.NaN),
  flags: encode(Uint8Array.of(0, 0, 0, ZERO, 0, NAN | 16)),
};

const plain = (rows: number[], columns: number[], mean: number[], marks: number[] = mean.map(() => 0)): Cells => {
  const held = Float32Array.from(mean);
  return { rows, columns, mean: held, low: held, high: held, marks: Uint8Array.from(marks) };
};

describe("an answer", () => {
  it("is decoded bit by bit, little end first", () => {
    expect([...bytes("AAECgP8=")]).toEqual([0, 1, 2, 128, 255]);
    expect([...floats(floats32(1.5, -3e-9, Number.POSITIVE_INFINITY))]).toEqual([
      1.5,
      Math.fround(-3e-9),
      Number.POSITIVE_INFINITY,
    ]);
  });

  it("becomes cells: a column stands until the next, the last as long as the one before or its steps", () => {
    const heat = heatOf(answer);
    expect([...(heat.rows as Float64Array)]).toEqual([0, 2, 3]);
    expect([...(heat.columns as Float64Array)]).toEqual([0, 20, 40, 61]);
    expect([...heat.marks]).toEqual([0, 0, 0, ZERO, 0, NAN]);
    expect(heat.spans[2]).toEqual([40, 60]);
    expect(extent(heat)).toEqual([-5, -1]);
    expect(markOf(marked(heat))).toBe("NaN");
    expect(markOf(INFINITE | NAN)).toBe("infinite");
  });

  it("of another size than it says is refused", () => {
    expect(() => heatOf({ ...answer, sites: [0] })).toThrow("another size");
  });

  it("without samples has no cells", () => {
    const none = { ...answer, steps: [], last_steps: [], mean: "", low: "", high: "", flags: "" };
    expect(extent(heatOf(none))).toBeNull();
  });

  it("is read at a place from the finest layer that has it", () => {
    const coarse = heatOf(answer);
    const fine = { ...plain([2, 3], [20, 25], [-7]), spans: [[20, 20]] as const };
    expect(standing([coarse, fine], 22, 2)?.mean).toBe(-7);
    expect(standing([coarse, fine], 30, 2)?.mean).toBe(-5);
    expect(standing([coarse, fine], 45, 1)).toMatchObject({
      sites: [0, 1],
      span: [40, 60],
      mean: -3,
      low: -4,
      high: -2,
    });
    expect(standing([coarse, fine], 500, 1)).toBeNull();
  });
});

describe("cells and pixels", () => {
  it("find the cell of each place, and none outside", () => {
    const edges = [0, 10, 11, 40];
    expect([-1, 0, 9.9, 10, 10.5, 11, 39.9, 40, Number.NaN].map((at) => indexOf(edges, at))).toEqual([
      -1, 0, 0, 1, 1, 2, 2, -1, -1,
    ]);
    expect(indexOf([], 0)).toBe(-1);
    expect([...spread(edges, -10, 40, 5)]).toEqual([-1, 0, 2, 2, 2]);
  });

  it("agree with a search from the left for many edges", () => {
    const edges = Array.from({ length: 300 }, (_, i) => i * i);
    for (let at = 0; at < 299 * 299; at += 97) {
      expect(indexOf(edges, at)).toBe(edges.findIndex((edge, i) => edge <= at && at < edges[i + 1]));
    }
  });

  it("paint each pixel in its cell's colour; a mark is a pattern; what is not covered stays", () => {
    const ramp = Uint32Array.from({ length: 11 }, (_, i) => 100 + i);
    const cells = plain([0, 1, 2], [0, 1, 2], [-10, 0, Number.NaN, -5], [0, 0, INFINITE, 0]);
    const image = new Uint32Array(9).fill(7);
    const seen = { x: { from: 0, to: 3 }, y: { from: 0, to: 3 } };
    paint(image, 3, cells, seen, [-10, 0], { ramp, zero: 1, broken: 2 });
    expect([...image]).toEqual([100, 110, 7, 2, 105, 7, 7, 7, 7]);
  });

  it("paint zeros as dots and NaN as stripes: some pixels have ink and some have none", () => {
    const ramp = Uint32Array.of(100);
    for (const [mark, ink] of [
      [ZERO, 1],
      [NAN, 2],
    ] as const) {
      const image = new Uint32Array(144).fill(7);
      const seen = { x: { from: 0, to: 1 }, y: { from: 0, to: 1 } };
      paint(image, 12, plain([0, 1], [0, 1], [-1], [mark]), seen, [-1, 0], { ramp, zero: 1, broken: 2 });
      expect(new Set(image)).toEqual(new Set([0, ink]));
    }
  });

  it("ask for no more cells than there are pixels, samples' room or what the server gives", () => {
    const all = { from: 0, to: 100_000 };
    expect(cellsOf(all, { from: 0, to: 10_000 }, 700, 300)).toEqual({ columns: 704, rows: 320 });
    expect(cellsOf(all, { from: 0, to: 10_000 }, 3000, 3000)).toEqual({ columns: 1024, rows: 512 });
    expect(cellsOf({ from: 5, to: 9 }, { from: 0, to: 8 }, 700, 300)).toEqual({ columns: 4, rows: 8 });
  });
});

describe("two runs", () => {
  it("are divided where both have numbers, each sample of the first by what stands at its step", () => {
    const a = plain([0, 1], [0, 10, 20, 30], [-1, -2, -3]);
    const b = plain([0, 1], [0, 5, 15, 20], [-4, -6, -9]);
    expect([...ratio(a, b).mean]).toEqual([3, 4, Number.NaN]);
    const late = plain([0, 1], [5, 10, 25], [-4, -6]);
    expect([...ratio(a, late).mean]).toEqual([Number.NaN, 4, 3]);
    const marks = ratio(a, plain([0, 1], [0, 20, 40], [-4, -6], [0, ZERO])).marks;
    expect([...marks]).toEqual([0, 0, ZERO]);
  });

  it("agree in the longest stretch of layers of the same names", () => {
    const names = (count: number, from = 0) => Array.from({ length: count }, (_, i) => `layers.${i + from}`);
    expect(agreement(names(4), names(9))).toEqual({ first: 0, other: 0, count: 4 });
    expect(agreement(["first", ...names(5), "head"], names(7))).toEqual({ first: 1, other: 0, count: 5 });
    expect(agreement(names(5, 3), names(5))).toEqual({ first: 0, other: 3, count: 2 });
    expect(agreement(["a"], ["b"]).count).toBe(0);
    expect(agreement(["a", "b", "c"], ["c", "b", "a"]).count).toBe(1);
    expect(agreement([], []).count).toBe(0);
  });

  it("are laid over each other by moving the sites of one", () => {
    expect([...(shifted(heatOf(answer), 3).rows as Float64Array)]).toEqual([3, 5, 6]);
  });
});

describe("a map of several processes", () => {
  it("is asked for anew when any of them has sampled more of what is seen, and not otherwise", () => {
    const seen = { from: 0, to: 100 };
    const versions = [[40, 20], [40, 30], [100, 100], [300, 200], []].map((reached) =>
      versionOf({ reached, rewritten: 0, created: "" }, seen),
    );
    expect(versions.map(Number.parseFloat)).toEqual([60, 70, 200, 200, 0]);
    expect(new Set(versions).size).toBe(4);
  });

  it("is asked for anew when what was recorded is another, though as many steps are", () => {
    const seen = { from: 0, to: 100 };
    const run = { reached: [100], rewritten: 0, created: "monday" };
    const others = [run, { ...run, rewritten: 1 }, { ...run, created: "tuesday" }].map((one) => versionOf(one, seen));
    expect(new Set(others).size).toBe(3);
    expect(versionOf({ ...run }, seen)).toBe(others[0]);
  });
});

describe("lines through a map", () => {
  const cells = plain(
    [0, 1, 2, 3, 4, 5],
    [30, 40],
    [-1, Number.NaN, Number.NaN, Number.NaN, Number.NaN],
    [0, ZERO, INFINITE | NAN, NAN, 0],
  );

  it("keep what is no number as such, and leave out what was not measured", () => {
    const line = byLayer({ label: "gradient", colour: 0 }, cells);
    expect(line.x).toEqual([0, 1, 2, 3]);
    expect(line.y).toEqual([-Math.LN10, Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY, Number.NaN]);
    expect(line.logs).toBe(true);
  });

  it("run over the steps of a row", () => {
    const line = overSteps({ label: "gradient", colour: 0 }, plain([0, 1, 2], [5, 7, 9], [-1, -2, -3, -4]), 1);
    expect([line.x, line.y]).toEqual([
      [5, 7],
      [-3 * Math.LN10, -4 * Math.LN10],
    ]);
  });
});

describe("colours", () => {
  it("are those of the report at its sixteen levels", () => {
    const ramp = steps(RISING, 16);
    expect(ramp[0].toString(16)).toBe("ff5a2810"); // opaque, blue, green, red
    expect(ramp[15].toString(16)).toBe("ff66e5fb");
  });

  it("rise in lightness, and a ratio's are lightest or darkest at 1", () => {
    const light = (pixel: number) => 0.3 * (pixel & 255) + 0.6 * ((pixel >> 8) & 255) + 0.1 * ((pixel >> 16) & 255);
    const rising = [...steps(RISING, 16)].map(light);
    expect(rising.every((value, i) => i === 0 || value > rising[i - 1])).toBe(true);
    for (const [name, side] of [
      ["light", Math.max],
      ["dark", Math.min],
    ] as const) {
      const found = [...steps(DIVERGING[name], 9)].map(light);
      expect(found.indexOf(side(...found))).toBe(4);
    }
  });

  it("span three decades at least, and a ratio a factor of ten to each side", () => {
    expect(span([-4, -3])).toEqual([-5, -2]);
    expect(span([-9, -1])).toEqual([-9, -1]);
    expect(span(null)).toEqual([-3, 0]);
    expect(balanced([-0.1, 0.2])).toEqual([-1, 1]);
    expect(balanced([-3, 1])).toEqual([-3, 3]);
  });
});

describe("what lines by layer are of without a choice", () => {
  const cells = (means: number[], marks: number[]) => ({
    rows: [0, 1, 2],
    columns: [0, 10, 20, 30],
    spans: [
      [0, 0],
      [10, 10],
      [20, 20],
    ] as [number, number][],
    mean: Float32Array.from(means),
    low: Float32Array.from(means),
    high: Float32Array.from(means),
    marks: Uint8Array.from(marks),
  });
  const none = Number.NaN;

  it("is the last sample where that is finite", () => {
    expect(restOf([cells([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, ZERO])])).toMatchObject({ span: [20, 20], passed: null });
    expect(restOf([])).toBeNull();
  });

  it("is the last finite one of all maps, and says what it passes over and why", () => {
    const good = cells([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]);
    const broken = cells([1, none, 3, 4, 5, none], [0, NAN, 0, 0, 0, NAN]);
    expect(restOf([good, broken])).toEqual({ span: [0, 0], passed: [20, 20], broken: true });
    const infinite = cells([1, 2, 3, 4, 5, 6], [0, 0, INFINITE, 0, 0, 0]);
    expect(restOf([infinite])).toEqual({ span: [10, 10], passed: [20, 20], broken: true });
    const empty = cells([1, 2, none, 4, 5, none], [0, 0, 0, 0, 0, 0]);
    expect(restOf([empty, good])).toEqual({ span: [10, 10], passed: [20, 20], broken: false });
  });

  it("is of those samples that are seen", () => {
    const map = cells([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]);
    expect(restOf([map, map], 20)).toEqual({ span: [10, 10], passed: null, broken: false });
    expect(restOf([map], 15)).toMatchObject({ span: [10, 10] });
    expect(restOf([map], 0)).toBeNull();
  });

  it("is the last sample where none is finite", () => {
    expect(restOf([cells([none, none, none, none, none, none], [NAN, NAN, NAN, 0, 0, 0])])).toEqual({
      span: [20, 20],
      passed: null,
      broken: false,
    });
  });
});
