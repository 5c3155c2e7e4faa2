import { describe, expect, it } from "vitest";
import activations from "../golden/activations.json";
import extremes from "../golden/extremes.json";
import layers from "../golden/layers.json";
import losses from "../golden/losses.json";
import optimizers from "../golden/optimizers.json";
import { activation, activationNames } from "../src/engine/activation";
import { Linear } from "../src/engine/linear";
import { crossEntropy, meanSquare } from "../src/engine/loss";
import { matrixFrom, type Precision, withSize } from "../src/engine/matrix";
import { Activate, type Module, parameter } from "../src/engine/module";
import { type NormName, normalisation } from "../src/engine/normalise";
import { type OptimizerOptions, optimizer } from "../src/engine/optimise";
import { by, expectClose, expectSame, WAYS } from "./golden";

describe.each(WAYS)("in $precision by $route", ({ precision, route }) => {
  it("sums near overflow term by term, so that what leaves the range on the way does not come back", () => {
    const layer = new Linear("large", 3, 3, precision, { bias: false });
    layer.weight.value.set([1, 1, -1, -1, 1, 1, 1, -2, 0]);
    by(route, () => {
      const x = matrixFrom([2.5e38, 2.5e38, 2.5e38], 1, 3, precision);
      const beyond = precision === "float32" ? Number.POSITIVE_INFINITY : 2.5e38;
      const [largest, alike] = [withSize(2.5e38, () => layer.forward(x)), layer.forward(x)];
      expectClose("in order", largest.data.subarray(1), [2.5e38, -2.5e38], precision);
      expect(largest.data[0]).toBe(beyond);
      expectClose("rounded once", alike.data, [2.5e38, 2.5e38, -2.5e38], precision);
    });
  });

  it.each(activations)("$name has PyTorch's values and slopes", ({ name, at, value, slope }) => {
    const module = new Activate(activation(name));
    by(route, () => {
      const x = matrixFrom(at, 1, at.length, precision);
      const ones = matrixFrom(Array(at.length).fill(1), 1, at.length, precision);
      expectClose("value", module.forward(x).data, value, precision);
      expectClose("slope", module.backward(ones).data, slope, precision);
    });
  });

  it.each(extremes)(
    "$name at NaN and infinity is PyTorch's, zeros with their signs",
    ({ name, at, given, value, back }) => {
      const module = new Activate(activation(name));
      at.map(Number).forEach((u, place) => {
        if (!Number.isFinite(precision === "float32" ? Math.fround(u) : u) && Number.isFinite(u)) return;
        given.map(Number).forEach((g, which) => {
          by(route, () => {
            // Three: two that a compiled loop takes at once, and one that is left.
            const [x, byOutput] = [u, g].map((one) => matrixFrom([one, one, one], 1, 3, precision));
            const [y, byInput] = [module.forward(x).data, module.backward(byOutput).data];
            for (let i = 0; i < 3; i++) {
              expectSame(`value at ${u}`, y[i], Number(value[place]));
              expectSame(`${g} back at ${u}`, byInput[i], Number(back[place * given.length + which]));
            }
          });
        });
      });
    },
  );

  it.each(layers)("$name has PyTorch's output and gradients", (golden) => {
    by(route, () => backAndForth(golden, precision));
  });

  it.each(losses)("$name has PyTorch's value and gradient", (golden) => {
    const { rows, outputs, labels, targets } = golden;
    const y = matrixFrom(outputs, rows, outputs.length / rows, precision);
    const loss =
      golden.name === "cross_entropy"
        ? crossEntropy(y, Int32Array.from(labels))
        : meanSquare(y, matrixFrom(targets, rows, targets.length / rows, precision));
    expectClose("value", [loss.value], [golden.value], precision);
    expectClose("gradient", loss.gradient.data, golden.gradient, precision);
  });

  it.each(optimizers)("$options takes PyTorch's steps", ({ options, start, gradients, after }) => {
    const own = parameter("weight", [2, 3], precision, start);
    const steps = optimizer([own], options as OptimizerOptions);
    gradients.forEach((gradient, place) => {
      own.gradient.set(gradient);
      steps.step();
      expectClose(`step ${place}`, own.value, after[place], precision);
    });
  });
});

function backAndForth(golden: (typeof layers)[number], precision: Precision): void {
  const module = makeLayer(golden.name, golden.output.length / golden.rows, precision);
  const values: Record<string, number[] | undefined> = golden.parameters;
  const gradients: Record<string, number[] | undefined> = golden.byParameter;
  const key = (name: string) => name.replace("linear.", "");
  for (const own of module.parameters) own.value.set(values[key(own.name)]!);
  const { rows, input, cotangent } = golden;
  const y = module.forward(matrixFrom(input, rows, input.length / rows, precision));
  expectClose("output", y.data, golden.output, precision);
  const byInput = module.backward(matrixFrom(cotangent, rows, cotangent.length / rows, precision));
  expectClose("by input", byInput.data, golden.byInput, precision);
  expect(module.parameters.map(({ name }) => key(name))).toEqual(Object.keys(values));
  for (const own of module.parameters) expectClose(own.name, own.gradient, gradients[key(own.name)]!, precision);
}

function makeLayer(name: string, dimOut: number, precision: Precision): Module {
  if (name.startsWith("linear")) return new Linear("linear", 4, dimOut, precision, { bias: name === "linear" });
  return normalisation(name as NormName, "norm", 4, precision);
}

it("holds all activations that the golden file has, and no others", () => {
  expect(activations.map(({ name }) => name).sort()).toEqual([...activationNames].sort());
});
