/** Axes and paths of figures, and numbers in words. */

import { expect, test } from "vitest";
import { axisOf, scaleOver, xAxisOf } from "../src/figures/axis";
import { draw, missing, missingWords, shape, valueAt } from "../src/figures/draw";
import { allX, type Colour, indexAt, type Series } from "../src/figures/series";
import { counted, grouped, listed, short, shortExp } from "../src/page/number";

function series(y: number[], style: Series["style"] = "measured", more: Partial<Series> = {}): Series {
  return { label: "plain", colour: 0, style, x: y.map((_, i) => i), y, ...more };
}

const LOG = { label: "gradient", scale: "log" } as const;
const FRAME = { left: 0, top: 0, right: 100, bottom: 50 };

test("numbers are written as in the report", () => {
  expect([0, 1, 1234567, 0.408163, 12.5, 99999.4, 1e-3].map((v) => short(v))).toEqual([
    "0",
    "1",
    "1.23×10⁶",
    "0.408",
    "12.5",
    "99,999",
    "0.001",
  ]);
  expect([2.034e-20, -3e-4, 9.996e-5, 1e300, 5e-324, 1.7e308].map((v) => short(v))).toEqual([
    "2.03×10⁻²⁰",
    "−3.00×10⁻⁴",
    "1.00×10⁻⁴",
    "1.00×10³⁰⁰",
    "4.94×10⁻³²⁴",
    "1.70×10³⁰⁸",
  ]);
  expect([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY].map((v) => short(v))).toEqual([
    "NaN",
    "∞",
    "−∞",
  ]);
});

test("a number with more whole digits than are asked for is written in whole", () => {
  expect([223.4, -99.96, 12.5, 999.4, 1000.4].map((v) => short(v, 2))).toEqual(["223", "−100", "13", "999", "1,000"]);
  expect([999.7, 99.97].map((v) => short(v))).toEqual(["1,000", "100"]);
  expect(short(7.6, 1)).toBe("8");
});

test("a number that no float holds is written from its logarithm", () => {
  expect(shortExp(1000 * Math.log(0.25))).toBe("8.71×10⁻⁶⁰³");
  expect(shortExp(Math.log(0.5))).toBe("0.5");
  expect(shortExp(Number.NEGATIVE_INFINITY)).toBe("0");
});

test("words for counts and lists", () => {
  expect(grouped(1234567)).toBe("1,234,567");
  expect(counted(1, "layer")).toBe("1 layer");
  expect(counted(2000, "layer")).toBe("2,000 layers");
  expect(listed(["a", "b", "c"])).toBe("a, b and c");
});

test("a logarithmic axis labels few powers of ten, also over hundreds of decades", () => {
  expect(axisOf(LOG, [series([1e-12, 1])]).ticks.map((tick) => tick.label)).toEqual([
    "10⁻¹²",
    "10⁻¹⁰",
    "10⁻⁸",
    "10⁻⁶",
    "10⁻⁴",
    "10⁻²",
    "1",
  ]);
  const wide = axisOf(LOG, [series([1e-300, 1e200])]);
  expect(wide.ticks.length).toBeLessThan(8);
  expect(wide.place(1e-300)).toBeCloseTo(0, 6);
  expect(wide.place(1e200)).toBeCloseTo(1, 6);
  expect(axisOf(LOG, [series([0.5, 2])]).ticks.map((tick) => tick.label)).toEqual(["0.5", "1", "2"]);
  const near = axisOf(LOG, [series([1.01e-7, 1.12e-7])]).ticks.map((tick) => tick.label);
  expect(near).toEqual(["8×10⁻⁸", "10⁻⁷", "1.2×10⁻⁷", "1.4×10⁻⁷", "1.6×10⁻⁷"]);
});

test("what has no place on the axis gets its edge", () => {
  const axis = axisOf(LOG, [series([1e-4, 1])]);
  expect(axis.place(1e-2)).toBeCloseTo(0.5, 12);
  const others = [0, -1, Number.POSITIVE_INFINITY, Number.NaN].map((value) => axis.place(value));
  expect(others).toEqual(["zero", "below", "above", "nan"]);
  expect(axis.place(Number.NEGATIVE_INFINITY, true)).toBe("zero");
});

test("logarithms stand where their values would, and below every float too", () => {
  const axis = axisOf(LOG, [series([0, -1000 * Math.log(4)], "predicted", { logs: true })]);
  expect(axis.place(-500 * Math.log(4), true)).toBeCloseTo(0.5, 2);
});

test("a reference does not flatten what was measured", () => {
  const reference = series([1e-300, 1], "reference");
  expect(axisOf(LOG, [series([1e-20, 1]), reference]).place(1e-40)).toBeCloseTo(0, 6);
  expect(axisOf(LOG, [series([0.9, 1]), reference]).place(1e-13)).toBeCloseTo(0, 6);
});

test("a line that yields leaves the axis where the others would be flattened, and that is said", () => {
  const theory = series([1, 1e30, 1e60], "predicted", { label: "theory", yields: true });
  const [axis, close] = [
    [1, 10, 1e5],
    [1, 1e30, 1e58],
  ].map((y) => axisOf(LOG, [series(y), theory]));
  expect(axis.place(1e10)).toBeCloseTo(1, 6);
  expect(close.place(1e60)).toBeCloseTo(1, 6);
  const said = (one: Series) => missing([one], axis).map((found) => missingWords(found, (x) => `step ${x}`));
  expect(said(theory)).toEqual([
    "theory: 2 values (step 1 to step 2) lie above the axis, which keeps to what was measured.",
  ]);
  expect(said(series([1e-30, 1], "predicted", { yields: true }))[0]).toContain("1 value (step 0) lies below the axis");
  expect(said(series([1e60]))).toEqual([]);
  expect(missing([theory], close)).toEqual([]);
  expect(axisOf(LOG, [theory]).place(1e60)).toBeCloseTo(1, 6);
  // An end at 0.99 is moved to 1.
  const moved = series([0.99, 1e9], "predicted", { yields: true });
  expect(missing([moved], axisOf(LOG, [series([0.99, 1e9]), moved]))).toEqual([]);
});

test("a tick has as many digits as it needs", () => {
  const labels = (...y: number[]) => axisOf(LOG, [series(y)]).ticks.map(({ label }) => label);
  expect(labels(1e-3)).toEqual(["8×10⁻⁴", "0.001", "0.0012", "0.0014"]);
  expect(labels(1e-5, 1.1e-5)).toEqual(["8×10⁻⁶", "10⁻⁵", "1.2×10⁻⁵", "1.4×10⁻⁵", "1.6×10⁻⁵"]);
  expect(xAxisOf({ label: "step" }, 0, 4e6, 4).ticks.map(({ label }) => label)).toContain("2×10⁶");
});

test("nothing to draw leaves an axis", () => {
  expect(axisOf(LOG, []).ticks.length).toBeGreaterThan(1);
  expect(axisOf(LOG, [series([0, 0])]).place(0)).toBe("zero");
  expect(xAxisOf({ label: "layer", whole: true }, 0, 0).place(0)).toBe(0.5);
});

test("whole ticks only where asked", () => {
  const labels = xAxisOf({ label: "layer", whole: true }, 0, 3).ticks.map((tick) => tick.label);
  expect(labels).toEqual(["0", "1", "2", "3"]);
});

test("an axis over decades has a logarithm's places and labels, and gives back where somebody points", () => {
  expect([scaleOver(2, 60), scaleOver(2, 64), scaleOver(0, 1000)]).toEqual(["linear", "log", "linear"]);
  const axis = xAxisOf({ label: "depth", whole: true, scale: "log" }, 2, 64);
  expect(axis.ticks.map((tick) => tick.label)).toEqual(["2", "5", "10", "20", "50"]);
  expect([2, 4, 8, 16, 32, 64].map((x) => axis.place(x))).toEqual(
    [0, 1, 2, 3, 4, 5].map((k) => expect.closeTo(k / 5, 9)),
  );
  for (const x of [2, 5, 17, 64]) expect(axis.valueAt(axis.place(x) as number)).toBeCloseTo(x, 9);
  const linear = xAxisOf({ label: "depth" }, 2, 64);
  expect(linear.valueAt(linear.place(17) as number)).toBeCloseTo(17, 9);
  expect(xAxisOf({ label: "depth", scale: "log" }, 1, 1e6, 4).ticks.map((tick) => tick.label)).toContain("1");
  expect(xAxisOf({ label: "depth", scale: "log" }, 5, 5).place(5)).toBeCloseTo(0.5, 9);
});

test("a line has a gap where a value has no place, and a mark at the edge", () => {
  const one = series([1, 0, 1e-2, 1e-4]);
  const drawn = draw(one, xAxisOf({ label: "layer" }, 0, 3), axisOf(LOG, [one]), FRAME);
  expect(drawn.line).toBe("M0,0ZM66.7,25L100,50");
  expect(drawn.edges.match(/M/g)).toHaveLength(1);
  expect(drawn.marks.match(/M/g)).toHaveLength(3);
});

test("long lines have few marks, at other places for other colours", () => {
  const long = series(Array.from({ length: 1000 }, (_, i) => 1 + i));
  const x = xAxisOf({ label: "layer" }, 0, 999);
  const marks = (colour: 0 | 1) => draw({ ...long, colour }, x, axisOf(LOG, [long]), FRAME).marks;
  expect(marks(0).match(/M/g)!.length).toBeLessThan(12);
  expect(marks(0).split("a")[0]).not.toBe(marks(1).split("L")[0]);
});

test("every colour has a shape of its own", () => {
  const shapes = ([0, 1, 2, 3, 4, 5, 6] as const).map((colour) => shape(colour, 0, 0, 1));
  expect(new Set(shapes).size).toBe(7);
});

test("what is missing is counted in words", () => {
  const one = series([0, 0, 1, Number.POSITIVE_INFINITY]);
  const words = missing([one], axisOf(LOG, [one])).map((found) => missingWords(found, (x) => `layer ${x}`));
  expect(words).toEqual([
    "plain: 2 values (layer 0 to layer 1) are exactly zero, marked at the lower edge.",
    "plain: 1 value (layer 3) is infinite, marked at the upper edge.",
  ]);
});

test("values are found by their x", () => {
  const one: Series = { ...series([5, 6, 7]), x: [1, 4, 9] };
  expect([1, 4, 9, 5].map((x) => indexAt(one, x))).toEqual([0, 1, 2, -1]);
  expect(allX([one, series([0, 0])])).toEqual([0, 1, 4, 9]);
  expect(valueAt(one, 1)).toBe("6");
  expect(valueAt(one, -1)).toBe("–");
});

test("a colour that comes again has another mark", () => {
  const all = Array.from({ length: 14 }, (_, colour) => colour as Colour);
  const marks = all.map((colour) => shape(colour, 0, 0, 3));
  expect(new Set(marks.slice(0, 7)).size).toBe(7);
  expect(new Set(all.map((colour, i) => `${Number(colour) % 7} ${marks[i]}`)).size).toBe(14);
});
