import { describe, expect, it } from "vitest";
import golden from "../golden/paths.json";
import { floats, matrixFrom } from "../src/engine/matrix";
import { type NetworkOptions, Stack } from "../src/engine/network";
import { pathLengths } from "../src/engine/paths";
import { Random } from "../src/engine/random";
import { expectClose, PRECISIONS } from "./golden";

const residual: NetworkOptions = {
  depth: 10,
  width: 12,
  connection: { name: "residual" },
  activation: "relu",
  norm: "layer",
  preActivation: true,
  seed: 4,
};

function passed(options: NetworkOptions) {
  const stack = new Stack(options);
  const draw = (name: string) => {
    const data = floats(8 * options.width, "float64");
    new Random(1, name).fillNormal(data, 1);
    return { data, rows: 8, cols: options.width };
  };
  stack.forward(draw("input"));
  return { stack, cotangent: draw("cotangent") };
}

describe.each(PRECISIONS)("in %s", (precision) => {
  it.each(golden)("every path of $name has the squares that PyTorch gives", (case_) => {
    const { depth, preActivation, rows } = case_;
    const width = case_.input.length / rows;
    const stack = new Stack({ ...residual, activation: "tanh", depth, width, preActivation, precision });
    const values: Record<string, number[] | undefined> = case_.parameters;
    for (const own of stack.parameters) own.value.set(values[own.name]!);
    stack.forward(matrixFrom(case_.input, rows, width, precision));
    const found = pathLengths(stack.branches, matrixFrom(case_.cotangent, rows, width, precision));
    const total = case_.squares.reduce((sum, square) => sum + square, 0);
    const shares = case_.squares.map((square) => square / total);
    expect(found).toMatchObject({ exact: true, followed: 2 ** depth });
    expectClose("shares", found.shares, shares, precision);
    expectClose("gains", found.gains, case_.gains, precision);
    expectClose("estimate", found.estimated, case_.estimated, precision);
    const mean = shares.reduce((sum, share, length) => sum + length * share, 0);
    expectClose("mean", [found.mean], [mean], precision);
  });
});

describe("sampled paths", () => {
  it("agree with all paths", () => {
    const { stack, cotangent } = passed(residual);
    const every = pathLengths(stack.branches, cotangent);
    const errors = [1, 2, 3, 4].map((seed) => {
      const sampled = pathLengths(stack.branches, cotangent, { exact: 0, draws: 32, seed });
      expect(sampled).toMatchObject({ exact: false, followed: 32 * 11 });
      sampled.shares.forEach((share, length) => {
        expect(Math.abs(share - every.shares[length])).toBeLessThan(0.05);
      });
      return sampled.mean - every.mean;
    });
    expect(Math.abs(errors.reduce((sum, error) => sum + error, 0) / 4)).toBeLessThan(0.05);
  });

  it("are a binomial where all gains are equal: 54 orthogonal branches, 27 layers", () => {
    const options = { ...residual, depth: 54, activation: "linear", norm: "none", bias: false } as const;
    const { stack, cotangent } = passed({ ...options, init: { name: "orthogonal" } });
    const { shares, mean } = pathLengths(stack.branches, cotangent);
    expect(mean).toBeCloseTo(27, 9);
    const short = shares.subarray(5, 18).reduce((sum, share) => sum + share, 0);
    expect(short).toBeCloseTo(0.0045367, 7); // levada.theory.path_lengths([1.0] * 54).share(5, 17)
  });

  it("do not underflow along 200 branches, and leave no gradients behind", () => {
    const { stack, cotangent } = passed({ ...residual, depth: 200, init: { name: "he", gain: 1e-3 }, norm: "none" });
    const { shares, mean } = pathLengths(stack.branches, cotangent, { draws: 2 });
    expect(shares.every(Number.isFinite)).toBe(true);
    expect(mean).toBeLessThan(0.01);
    expect(stack.parameters.every(({ gradient }) => gradient.every((value) => value === 0))).toBe(true);
  });
});
