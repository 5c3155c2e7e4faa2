import { describe, expect, it } from "vitest";
import { erf } from "../src/engine/erf";
import { type Initialisation, Linear, variances } from "../src/engine/linear";
import { philox, Random } from "../src/engine/random";

describe("philox", () => {
  // The known answers that its authors publish with Random123.
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [Array(4).fill(0xffffffff), [0xffffffff, 0xffffffff], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])("of %o and %o is %o", (counter, key, expected) => {
    const words = new Uint32Array(4);
    philox(words, counter as [number, number, number, number], key as [number, number]);
    expect([...words]).toEqual(expected);
  });
});

describe("a stream of random numbers", () => {
  const first = (seed: number, name: string) => {
    const random = new Random(seed, name);
    return Array.from({ length: 8 }, () => random.uniform());
  };

  it("depends on its seed and its name, and on nothing else", () => {
    expect(first(3, "layers.7")).toEqual(first(3, "layers.7"));
    expect(first(3, "layers.7")).not.toEqual(first(3, "layers.8"));
    expect(first(3, "layers.7")).not.toEqual(first(4, "layers.7"));
    expect(first(3, "layers.7")).not.toEqual(first(3 + 2 ** 32, "layers.7"));
  });

  it.each([4, 7, 8, 1])("goes on the same after %i numbers, whether its start was drawn before or not", (count) => {
    const filled = (name: string, fill: "fillNormal" | "fillUniform") => {
      const random = new Random(5, name);
      const [first, second] = [new Float64Array(count), new Float64Array(3)];
      random[fill](first, 1);
      random[fill](second, 1);
      return [...first, ...second, random.uniform()];
    };
    const one = new Random(5, "one by one");
    const normal = Array.from({ length: count + 3 }, () => one.normal());
    const other = new Random(5, "others");
    const uniform = Array.from({ length: count + 3 }, () => 2 * other.uniform() - 1);
    const [afterNormal, afterUniform] = [one.uniform(), other.uniform()];
    for (let time = 0; time < 2; time++) {
      expect(filled("one by one", "fillNormal")).toEqual([...normal, afterNormal]);
      expect(filled("others", "fillUniform")).toEqual([...uniform, afterUniform]);
    }
  });

  it("is normal where it says so", () => {
    const random = new Random(0, "normal");
    const values = Float64Array.from({ length: 100_000 }, () => random.normal());
    const moment = (power: number) => values.reduce((total, value) => total + value ** power, 0) / values.length;
    // Four standard errors of each: sqrt(1/n), sqrt(2/n), sqrt(15/n) and sqrt(96/n).
    expect(Math.abs(moment(1))).toBeLessThan(0.013);
    expect(Math.abs(moment(2) - 1)).toBeLessThan(0.018);
    expect(Math.abs(moment(3))).toBeLessThan(0.049);
    expect(Math.abs(moment(4) - 3)).toBeLessThan(0.124);
  });

  it("needs a seed that is an integer", () => {
    expect(() => new Random(0.5, "x")).toThrow("a seed must be an integer");
  });
});

describe("initialisations", () => {
  const kinds: readonly Initialisation[] = [
    { name: "pytorch_default" },
    { name: "he" },
    { name: "glorot", gain: 2 },
    { name: "orthogonal", gain: 1.5 },
    { name: "gaussian", weightVariance: 3, biasVariance: 0.25 },
  ];

  it.each(kinds)("$name has the variances that theory takes for it", (init) => {
    const [fanOut, fanIn] = [300, 200];
    const { weight, bias } = new Linear("linear", fanIn, fanOut, "float64", { init });
    const expected = variances(init, fanIn, fanOut);
    const mean = (x: ArrayLike<number>) => Array.from(x).reduce((total, v) => total + v * v, 0) / x.length;
    expect(fanIn * mean(weight.value)).toBeCloseTo(expected.weight, 1);
    expect(Math.abs(mean(bias!.value) - expected.bias)).toBeLessThan(0.25 * expected.bias + 1e-15);
  });

  it.each([
    [5, 3],
    [3, 5],
    [4, 4],
  ])("orthogonal is orthogonal at %i x %i", (rows, cols) => {
    const { weight } = new Linear("linear", cols, rows, "float64", { init: { name: "orthogonal" } });
    const at = (i: number, j: number) => weight.value[i * cols + j];
    const short = Math.min(rows, cols);
    for (let a = 0; a < short; a++) {
      for (let b = 0; b < short; b++) {
        let product = 0;
        for (let k = 0; k < Math.max(rows, cols); k++)
          product += rows < cols ? at(a, k) * at(b, k) : at(k, a) * at(k, b);
        expect(product).toBeCloseTo(a === b ? 1 : 0, 14);
      }
    }
  });
});

describe("erf", () => {
  it.each([
    [0.172, 0.19218418444699345],
    [0.547, 0.5608177318709495],
    [0.922, 0.8077339921575493],
    [1.297, 0.933380880485625],
    [-1.797, -0.9889572083765417],
    [2.703, 0.9998679584189434],
  ])("of %f, between two points of its table, is right to 1e-15", (x, expected) => {
    expect(Math.abs(erf(x) - expected)).toBeLessThan(1e-15);
  });

  it("is 1 far out, and NaN of NaN", () => {
    expect(erf(7)).toBe(1);
    expect(erf(Number.NEGATIVE_INFINITY)).toBe(-1);
    expect(erf(Number.NaN)).toBeNaN();
  });
});
