/** What units look for: PyTorch's Jacobians, and what they are where nothing is curved. */

import { describe, expect, it } from "vitest";
import golden from "../golden/preferred.json";
import { matrixFrom } from "../src/engine/matrix";
import { Network, type NetworkOptions } from "../src/engine/network";
import { meanInput, preferred } from "../src/engine/preferred";
import { expectClose, PRECISIONS } from "./golden";

describe.each(PRECISIONS)("in %s", (precision) => {
  it.each(golden)("with $name connections, the Jacobian of each layer's units is PyTorch's", (case_) => {
    const network = new Network({ ...(case_.options as unknown as NetworkOptions), precision, classes: 3 });
    const values: Record<string, number[] | undefined> = case_.parameters;
    for (const own of network.parameters) if (values[own.name]) own.value.set(values[own.name]!);
    case_.jacobians.forEach((jacobian, layer) => {
      const found = preferred(network, Float64Array.from(case_.input), layer)!;
      expect([found.rows, found.cols]).toEqual([4, 5]);
      expectClose(`layer ${layer}`, found.values, jacobian, precision);
    });
    expect(network.parameters.every(({ gradient }) => gradient.every((one) => one === 0))).toBe(true);
  });
});

const LINEAR: NetworkOptions = {
  depth: 2,
  width: 3,
  inputs: 2,
  classes: 2,
  connection: { name: "plain" },
  activation: "linear",
};

it("is the product of the matrices where nothing is curved, wherever it is taken", () => {
  const network = new Network(LINEAR);
  const [stem, first, second] = ["stem", "layers.0.branch.linear", "layers.1.branch.linear"].map(
    (name) => network.parameters.find((own) => own.name === `${name}.weight`)!.value,
  );
  const times = (a: ArrayLike<number>, b: ArrayLike<number>, cols: number) =>
    Array.from({ length: 3 * cols }, (_, at) => {
      const [row, col] = [Math.floor(at / cols), at % cols];
      return [0, 1, 2].reduce((sum, k) => sum + a[3 * row + k] * b[cols * k + col], 0);
    });
  const product = times(second, times(first, stem, 2), 2);
  for (const x of [
    [0, 0],
    [5, -3],
  ]) {
    expectClose("product", preferred(network, Float64Array.from(x), 1)!.values, product, "float64");
  }
});

it("is taken at the mean input, is none with batch normalisation, and refuses a layer that is not there", () => {
  const data = { inputs: Float64Array.of(1, 2, 3, 6), labels: Int32Array.of(0, 1) };
  expect([...meanInput(data)]).toEqual([2, 4]);
  const batch = new Network({ ...LINEAR, norm: "batch" });
  expect(preferred(batch, Float64Array.of(0, 0), 0)).toBeNull();
  expect(() => preferred(new Network(LINEAR), Float64Array.of(0, 0), 2)).toThrow("a layer must be in [0, 2), got 2.");
});

it("leaves the network as it was", () => {
  const network = new Network({ ...LINEAR, activation: "tanh" });
  const x = matrixFrom([0.5, -1], 1, 2, "float64");
  const before = [...network.forward(x).data];
  preferred(network, Float64Array.of(0.1, 0.2), 1);
  expect([...network.forward(x).data]).toEqual(before);
});
