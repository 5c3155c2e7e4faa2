/** The exponential that compiled loops repeat. */

import { expect, it } from "vitest";
import { sigmoid } from "../src/engine/activation";
import { expOfNegative } from "../src/engine/exp";
import * as kernels from "../src/engine/kernels";
import { matrixFrom } from "../src/engine/matrix";
import { by, PRECISIONS } from "./golden";

const STEPS = 20_000;

it("is off by no more than the last place, down to what is zero", () => {
  let largest = 0;
  for (let step = 1; step < STEPS; step++) {
    for (const x of [-step * 1e-3, -708 * (step / STEPS), -(2 ** (-step / 500))]) {
      largest = Math.max(largest, Math.abs(expOfNegative(x) / Math.exp(x) - 1) / Number.EPSILON);
    }
  }
  expect(largest).toBeLessThanOrEqual(1);
  expect(largest).toBeGreaterThan(0); // it is not the browser's
  // Below the normal numbers there are few digits: within one of their steps.
  for (const x of [-708.5, -720, -744, -745.1]) {
    expect(Math.abs(expOfNegative(x) - Math.exp(x))).toBeLessThanOrEqual(Number.MIN_VALUE);
  }
});

it("knows what has no digits", () => {
  expect([0, -0, -746, -1e300, Number.NEGATIVE_INFINITY].map(expOfNegative)).toEqual([1, 1, 0, 0, 0]);
  expect(expOfNegative(Number.NaN)).toBeNaN();
  expect([Number.NEGATIVE_INFINITY, -800, 0, 800, Number.POSITIVE_INFINITY].map(sigmoid)).toEqual([0, 0, 0.5, 1, 1]);
  expect(sigmoid(-740)).toBeGreaterThan(0);
});

it.each(PRECISIONS)("compiled activations in %s give the same bits, of any numbers", (precision) => {
  const given = [0, -0, 1e-300, -1e-300, Infinity, -Infinity, NaN, 745, -745, -746, 1e308, -708.4, -1.5, 2.5, -40];
  for (let step = -200; step < 200; step++) given.push(step / 7, step * 4.3);
  const x = Float64Array.from(given); // an odd number of them
  for (const [loop, value] of [
    ["sigmoid", sigmoid],
    // biome-ignore lint/complexity/useMathMinMax: Math.max makes 0 of -0.
    ["relu", (u: number) => (u < 0 ? 0 : u)],
  ] as const) {
    const found = by("WebAssembly", () => {
      const { data } = matrixFrom(x, 1, x.length, precision);
      expect(kernels.map(loop, data, data)).toBe(true);
      return data.slice();
    });
    const expected = matrixFrom(x, 1, x.length, precision).data.map(value);
    expect([...found].map((one) => Object.is(one, -0))).toEqual([...expected].map((one) => Object.is(one, -0)));
    expect(found).toEqual(expected);
  }
});
