/** Comparison with what PyTorch and levada gave, by norm: 1e-12 in float64, 1e-6 in float32. */

import code from "virtual:kernels";
import { expect } from "vitest";
import { accelerate, within } from "../src/engine/kernels";
import type { Precision } from "../src/engine/matrix";

export const PRECISIONS: readonly Precision[] = ["float64", "float32"];

/** Whether inner loops are the engine's own, or compiled. */
export const ROUTES = ["TypeScript", "WebAssembly"] as const;
export type Route = (typeof ROUTES)[number];

export const CODE = Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0));

export function by<T>(route: Route, work: () => T): T {
  const compiled = accelerate(route === "WebAssembly" ? CODE : null);
  expect(compiled).toBe(route === "WebAssembly");
  try {
    return within(work);
  } finally {
    accelerate(null);
  }
}

/** Each precision by each route. */
export const WAYS = PRECISIONS.flatMap((precision) => ROUTES.map((route) => ({ precision, route })));

const BOUNDS: Record<Precision, number> = { float64: 1e-12, float32: 1e-6 };

export const norm = (values: ArrayLike<number>): number => Math.hypot(...Array.from(values));

/** The norm of the difference. */
export function distance(found: ArrayLike<number>, expected: readonly number[]): number {
  return found.length === expected.length
    ? norm(expected.map((value, i) => found[i] - value))
    : Number.POSITIVE_INFINITY;
}

/** Over the norm of what is expected; of something that should be zero, the norm. */
export function relativeError(found: ArrayLike<number>, expected: readonly number[]): number {
  return distance(found, expected) / (norm(expected) || 1);
}

export function expectClose(what: string, found: ArrayLike<number>, expected: readonly number[], precision: Precision) {
  const error = relativeError(found, expected);
  expect(error, `${what} in ${precision} is off by ${error}`).toBeLessThan(BOUNDS[precision]);
}

/** What is not finite, and zero with its sign, exactly; the rest has vectors of its own with all digits. */
export function expectSame(what: string, found: number, expected: number) {
  if (Number.isFinite(expected) && expected !== 0) expectClose(what, [found], [expected], "float32");
  else expect(found, what).toBe(expected);
}
