/** The mixing tab's numbers. */

import { expect, test } from "vitest";
import { away, errorLines, leftOut, logitsOf, some, steps, sums } from "../src/explorer/mixing";

const start = { depth: 50, streams: 4, iterations: 20, seed: 0, spread: 0.3 };

test("free matrices that moved away from the identity multiply to large gains, doubly stochastic ones to 1", () => {
  const { hyper, manifold } = away(start);
  expect(hyper.compositeForwardGain[49]).toBeGreaterThan(10);
  expect(Math.max(...manifold.compositeForwardGain)).toBeLessThan(1.001);
  expect(Math.min(...manifold.compositeBackwardGain)).toBeGreaterThan(0.999);
});

test("with no spread both are where levada starts them", () => {
  const { hyper, manifold } = away({ ...start, spread: 0 });
  expect([...hyper.matrices.slice(0, 6)]).toEqual([1, 0, 0, 0, 0, 1]);
  expect(manifold.matrices[0]).toBeGreaterThan(0.99);
});

test("a layer's matrices do not depend on the depth", () => {
  const deep = away({ ...start, depth: 60 });
  expect(deep.hyper.matrices.slice(0, 800)).toEqual(away(start).hyper.matrices);
});

test("few iterations leave columns that do not sum to 1, and gains above 1", () => {
  const { manifold } = away({ ...start, spread: 0.5, iterations: 1 });
  expect(Math.max(...manifold.compositeBackwardGain)).toBeGreaterThan(1.05);
});

test("each iteration brings the column sums nearer to 1; rows, normalised last, are at 1", () => {
  const all = steps(logitsOf(0, 4, 0, 0.2), 4, 20);
  expect(all).toHaveLength(20);
  for (const { rowError } of all) expect(rowError).toBeLessThan(1e-14);
  for (let at = 1; at < 10; at++) expect(all[at].columnError).toBeLessThan(all[at - 1].columnError);
});

test("what is rounding alone is not drawn, and is said", () => {
  const all = steps(logitsOf(0, 4, 0, 0.2), 4, 20);
  const [columns, ...rest] = errorLines(all, 4);
  expect([columns.label, rest]).toEqual(["columns", []]); // no row is off by more than rounding
  expect(Math.min(...Array.from(columns.y))).toBeGreaterThan(4 * Number.EPSILON);
  const floor = "Sums that differ from 1 by 8.9×10⁻¹⁶ or less do so by the rounding of float64, and are not drawn";
  expect(leftOut(all, 4)).toBe(`${floor}: rows, which are normalised last.`);
  const quick = steps(new Float64Array(16), 4, 3);
  expect(errorLines(quick, 4)).toEqual([]);
  expect(leftOut(quick, 4)).toBe(`${floor}: rows, which are normalised last, and columns from the first iteration on.`);
  const off = { ...all[0], rowError: 0.1 };
  expect(errorLines([off, all[1]], 4)[1].lacking).toEqual([0, 1]);
  expect(leftOut([off, all[1]], 4)).toBe("");
});

test("sums by row and column", () => {
  const { rows, columns, rowError, columnError } = sums([1, 2, 3, 4], 2);
  expect([[...rows], [...columns], rowError, columnError]).toEqual([[3, 7], [4, 6], 6, 5]);
});

test("a choice of layers has the first and the last", () => {
  expect(some(100, 5)).toEqual([0, 25, 50, 74, 99]);
  expect(some(2, 5)).toEqual([0, 1]);
  expect(some(1, 5)).toEqual([0]);
});
