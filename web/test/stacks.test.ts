import { describe, expect, it } from "vitest";
import sinkhorns from "../golden/sinkhorn.json";
import stacks from "../golden/stacks.json";
import { sinkhorn, sinkhornBackward } from "../src/engine/connections/sinkhorn";
import { matrixFrom, type Precision } from "../src/engine/matrix";
import { type NetworkOptions, Stack } from "../src/engine/network";
import { by, distance, expectClose, norm, WAYS } from "./golden";

type Named = Record<string, number[] | undefined>;

function backAndForth(golden: (typeof stacks)[number], precision: Precision): void {
  const stack = new Stack({ ...(golden.network as unknown as NetworkOptions), precision });
  const { rows, input, cotangent } = golden;
  const [values, gradients]: Named[] = [golden.parameters, golden.byParameter];
  const names = stack.parameters.map(({ name }) => name);
  expect([...names].sort()).toEqual(Object.keys(values).sort());
  for (const own of stack.parameters) own.value.set(values[own.name]!);
  const y = stack.forward(matrixFrom(input, rows, input.length / rows, precision));
  expectClose("output", y.data, golden.output, precision);
  const byInput = stack.backward(matrixFrom(cotangent, rows, cotangent.length / rows, precision));
  expectClose("by input", byInput.data, golden.byInput, precision);
  // Each by itself in float64. In float32 a single one, such as a scale, may be what is left of terms that cancel.
  if (precision === "float64") {
    for (const own of stack.parameters) expectClose(own.name, own.gradient, gradients[own.name]!, precision);
  }
  const all = stack.parameters.flatMap(({ gradient }) => Array.from(gradient));
  expectClose(
    "by all parameters",
    all,
    names.flatMap((name) => gradients[name]!),
    precision,
  );
  expectClose("signal by layer", stack.signals.signal, golden.signal, precision);
  expectClose("gradient by layer", stack.signals.gradient, golden.gradient, precision);
  const mixing = stack.mixing();
  expect(mixing === null).toBe(golden.mixing === null);
  if (mixing && golden.mixing) {
    expectClose("matrices", mixing.matrices, golden.mixing.matrices, precision);
    expectClose("forward gain", mixing.compositeForwardGain, golden.mixing.composite_forward_gain, precision);
    expectClose("backward gain", mixing.compositeBackwardGain, golden.mixing.composite_backward_gain, precision);
    golden.mixing.composite_log_column_sum.forEach((value, layer) => {
      const found = mixing.compositeLogColumnSum[layer];
      if (value === null) expect(found).toBe(Number.POSITIVE_INFINITY);
      else if (precision === "float64") expectClose("column sum", [Math.exp(found)], [Math.exp(value)], precision);
    });
  }
}

describe.each(WAYS)("in $precision by $route", ({ precision, route }) => {
  it.each(stacks)("a stack of $name is levada's, forward and backward", (golden) => {
    by(route, () => backAndForth(golden, precision));
  });

  it.each(stacks)("a stack of $name starts as levada's", ({ network, start }) => {
    const stack = new Stack({ ...(network as unknown as NetworkOptions), precision });
    const own = new Map(stack.parameters.map(({ name, value }) => [name, value]));
    for (const [name, value] of Object.entries(start as Named)) expectClose(name, own.get(name)!, value!, precision);
  });
});

describe("sinkhorn", () => {
  it.each(sinkhorns)("of $name is levada's", (golden) => {
    const { n, iterations, cotangent } = golden;
    const mix = new Float64Array(n * n);
    const byLogits = new Float64Array(n * n);
    const steps = sinkhorn(mix, golden.logits, { matrices: 1, n, iterations });
    sinkhornBackward(byLogits, cotangent, steps);
    expectClose("mix", mix, golden.mix, "float64");
    // Entries of any size: of those that underflowed, absorbing the factors brings back what has grown.
    golden.mix.forEach((entry, at) => {
      if (entry > 1e-300) expect(Math.abs(mix[at] / entry - 1)).toBeLessThan(1e-9);
    });
    // Far apart, the gradient's terms cancel: it is measured by what they are made of.
    expect(distance(byLogits, golden.byLogits) / norm(cotangent)).toBeLessThan(1e-12);
  });
});
