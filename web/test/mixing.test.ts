/** The mixing tab's numbers. */

import { expect, test } from "vitest";
import { away, logitsOf, some, steps, sums } from "../src/explorer/mixing";

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

test("sums by row and column", () => {
  const { rows, columns, rowError, columnError } = sums([1, 2, 3, 4], 2);
  expect([[...rows], [...columns], rowError, columnError]).toEqual([[3, 7], [4, 6], 6, 5]);
});

test("a choice of layers has the first and the last", () => {
  expect(some(100, 5)).toEqual([0, 25, 50, 74, 99]);
  expect(some(2, 5)).toEqual([0, 1]);
  expect(some(1, 5)).toEqual([0]);
});
