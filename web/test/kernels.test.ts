/** Compiled loops against the TypeScript that they stand for: not close, but the same. */

import { afterEach, describe, expect, it } from "vitest";
import type { ConnectionOptions } from "../src/engine/connections/index";
import { accelerate, within } from "../src/engine/kernels";
import { floats, matrixFrom, plain, precisionOf, product, transposed, unwritten, zeros } from "../src/engine/matrix";
import { requireGradients } from "../src/engine/module";
import { type NetworkOptions, Stack } from "../src/engine/network";
import { Random } from "../src/engine/random";
import { by, CODE, PRECISIONS } from "./golden";

afterEach(() => void accelerate(null));

const numbers = (count: number, name: string): Float64Array => {
  const random = new Random(1, name);
  return Float64Array.from({ length: count }, () => random.normal());
};

const bits = (values: ArrayLike<number>): BigUint64Array => new BigUint64Array(Float64Array.from(values).buffer);

const CONNECTIONS: readonly ConnectionOptions[] = [
  { name: "plain" },
  { name: "residual", activation: "sigmoid" },
  { name: "post_norm", alpha: 1.5 },
  { name: "post_norm", norm: "rms" },
  { name: "highway" },
  { name: "highway", coupled: false },
  { name: "dense", growth: 3 },
  { name: "hyper" },
  { name: "hyper", streams: 3, dynamic: false },
  { name: "manifold", streams: 2 },
  { name: "identity" },
  { name: "identity", streams: 5, head: "mean" },
  { name: "attention" },
  { name: "attention", blockSize: 2, scale: "sum" },
];

/** All that a pass gives, from parameters that are random where they would start at zero. */
function passed(options: NetworkOptions, rows: number, [learned, spread]: readonly [boolean, number]): number[] {
  const stack = new Stack(options);
  const { width, precision = "float64" } = options;
  requireGradients(stack.parameters, learned);
  for (const own of stack.parameters) {
    const moved = numbers(own.value.length, own.name);
    for (let i = 0; i < moved.length; i++) own.value[i] += spread * moved[i];
  }
  const y = stack.forward(matrixFrom(numbers(rows * width, "x"), rows, width, precision));
  const g = stack.backward(matrixFrom(numbers(rows * stack.dimOut, "g"), rows, stack.dimOut, precision));
  const { signal, gradient, weightGradient } = stack.signals;
  const learnt = learned ? stack.parameters.flatMap((own) => [...own.gradient]) : [];
  return [...y.data, ...g.data, ...signal, ...gradient, ...weightGradient, ...learnt];
}

describe.each(PRECISIONS)("in %s", (precision) => {
  const like = floats(0, precision);

  it.each([
    [1, 1, 1],
    [2, 3, 5],
    [4, 4, 4],
    [5, 6, 7],
    [7, 9, 1],
    [33, 18, 31],
  ])("a product of %i x %i, %i terms each, is the same to the last bit", (m, n, k) => {
    const given = [numbers(m * k, "a"), numbers(k * n, "b"), numbers(m * n, "c")];
    const compute = () => {
      const found: number[] = [];
      for (const [a, b] of [
        [plain, plain],
        [plain, transposed],
        [transposed, plain],
      ]) {
        const [x, y, z] = given.map((values) => matrixFrom(values, 1, values.length, precision).data);
        const factors = [a(x, a === plain ? k : m), b(y, b === plain ? n : k)] as const;
        const out = unwritten(m, n, like);
        product(out.data, ...factors, [m, n, k]);
        product(z, ...factors, [m, n, k], true);
        found.push(...out.data, ...z);
        // Into what lies elsewhere, of which there is more.
        const own = Float64Array.from(given[2]);
        const outside = precision === "float32" ? Float32Array.from(own) : own;
        product(outside, ...factors, [m, n, k], true);
        found.push(...outside);
      }
      return found;
    };
    expect(bits(by("WebAssembly", compute))).toEqual(bits(by("TypeScript", compute)));
  });

  it.each(CONNECTIONS)("a pass through $name is the same to the last bit", (connection) => {
    for (const width of [8, 7]) {
      for (const ways of [
        [true, 0.3],
        [false, 0],
      ] as const) {
        const options: NetworkOptions = { depth: 5, width, connection, activation: "sigmoid", precision };
        const [compiled, own] = (["WebAssembly", "TypeScript"] as const).map((route) =>
          by(route, () => passed(options, 6, ways)),
        );
        expect(own.every(Number.isFinite)).toBe(true);
        expect(bits(compiled)).toEqual(bits(own));
      }
    }
  });

  it.each(CONNECTIONS)("numbers that overflow in $name do so alike", (connection) => {
    const init = { name: "gaussian", weightVariance: 1e32, biasVariance: 1 } as const;
    const deep = precision === "float32" ? 6 : 30;
    const options: NetworkOptions = { depth: deep, width: 6, connection, activation: "relu", precision, init };
    const [compiled, own] = (["WebAssembly", "TypeScript"] as const).map((route) =>
      by(route, () => passed(options, 3, [false, 0])),
    );
    expect(compiled).toEqual(own); // any NaN is like any other
  });
});

it("matrices lie in there while work lasts, and elsewhere where there is no room", () => {
  accelerate(CODE);
  const like = new Float32Array(0);
  const outside = unwritten(2, 2, like);
  const place = within(() => {
    const [first, inner] = [unwritten(2, 2, like), within(() => unwritten(2, 2, like))];
    expect(inner.data.buffer).toBe(first.data.buffer);
    expect(inner.data.byteOffset).toBe(first.data.byteOffset + 16);
    expect(first.data.buffer).not.toBe(outside.data.buffer);
    const huge = unwritten(2 ** 13, 2 ** 13, like); // as many bytes as there are at most
    expect(huge.data.buffer).not.toBe(first.data.buffer);
    expect(huge.data.length).toBe(2 ** 26);
    return first.data.byteOffset;
  });
  const again = within(() => unwritten(2, 2, like));
  again.data.fill(7);
  expect([...within(() => zeros(2, 2, like)).data]).toEqual([0, 0, 0, 0]);
  expect(again.data.byteOffset).toBe(place);
  expect(precisionOf(again.data)).toBe("float32");
});

it("room grows to what was wanted, and numbers are the same when it is not there yet", () => {
  const options = { depth: 40, width: 64, connection: { name: "manifold" }, activation: "relu" } as const;
  const own = by("TypeScript", () => passed(options, 256, [false, 0]));
  accelerate(CODE);
  const before = within(() => unwritten(1, 1, new Float64Array(0)).data.buffer.byteLength);
  for (let time = 0; time < 2; time++) {
    expect(bits(within(() => passed(options, 256, [false, 0])))).toEqual(bits(own));
  }
  expect(within(() => unwritten(1, 1, new Float64Array(0)).data.buffer.byteLength)).toBeGreaterThan(before);
});

it("where code cannot be compiled, the engine goes on without", () => {
  expect(accelerate(CODE.slice(0, -1))).toBe(false);
  expect(within(() => unwritten(1, 1, new Float32Array(0))).data.buffer.byteLength).toBe(4);
});
