import { describe, expect, it } from "vitest";
import type { ConnectionOptions } from "../src/engine/connections/index";
import { accuracy, crossEntropy } from "../src/engine/loss";
import { type Floats, floats, type Matrix, matrixFrom, type Precision, rms } from "../src/engine/matrix";
import { requireGradients, zeroGradients } from "../src/engine/module";
import { Network, type NetworkOptions, Stack } from "../src/engine/network";
import { optimizer } from "../src/engine/optimise";
import { Random } from "../src/engine/random";
import { norm } from "./golden";

const ALL: readonly ConnectionOptions[] = [
  { name: "plain" },
  { name: "residual" },
  { name: "post_norm" },
  { name: "highway" },
  { name: "dense", growth: 3 },
  { name: "hyper" },
  { name: "manifold" },
  { name: "identity" },
  { name: "attention" },
  { name: "attention", blockSize: 4 },
];

function gaussian(rows: number, cols: number, name: string, precision: Precision = "float64"): Matrix {
  const data = floats(rows * cols, precision);
  new Random(0, name).fillNormal(data, 1);
  return { data, rows, cols };
}

describe("rms", () => {
  it("is exact where squares overflow or underflow", () => {
    expect(rms(Float64Array.of(3e200, -4e200))).toBeCloseTo(3.535533905932738e200, -190);
    expect(rms(Float64Array.of(3e-200, -4e-200)) / 3.535533905932738e-200).toBeCloseTo(1, 14);
    expect(rms(Float64Array.of(5e-324, 5e-324))).toBe(5e-324);
    expect(rms(Float64Array.of(0, 0))).toBe(0);
    expect(rms(Float64Array.of(1, Number.NaN))).toBeNaN();
    expect(rms(Float64Array.of(1, Number.NEGATIVE_INFINITY))).toBe(Number.POSITIVE_INFINITY);
  });
});

describe.each(ALL)("without gradients of its parameters, a stack of %o", (connection) => {
  const options: NetworkOptions = { depth: 9, width: 6, connection, activation: "tanh", seed: 5 };
  const run = (precision: Precision, required: boolean, scale: number, prepare = (_: Stack) => {}) => {
    const stack = new Stack({ ...options, precision });
    prepare(stack);
    requireGradients(stack.parameters, required);
    const x = gaussian(5, 6, "input", precision);
    const cotangent = gaussian(5, stack.dimOut, "cotangent", precision);
    for (let i = 0; i < x.data.length; i++) x.data[i] *= Math.sqrt(scale); // of which squares do not overflow
    for (let i = 0; i < cotangent.data.length; i++) cotangent.data[i] *= scale;
    stack.forward(x);
    const byInput = stack.backward(cotangent);
    const { signal, gradient } = stack.signals;
    return { measured: { signal, gradient, byInput: byInput.data, mixing: stack.mixing() }, stack };
  };
  const move = (stack: Stack) => {
    for (const { name, value } of stack.parameters) {
      const along = gaussian(1, value.length, name).data;
      for (let i = 0; i < value.length; i++) value[i] += 0.1 * along[i];
    }
  };

  it.each([
    ["at the start", 1, () => {}],
    ["after training", 1, move],
    ["where products overflow", 1e240, () => {}],
    ["where numbers overflow", Number.POSITIVE_INFINITY, () => {}],
  ] as const)("measures the same %s, and adds to none", (_, scale, prepare) => {
    const [with_, without] = [true, false].map((required) => run("float64", required, scale, prepare));
    for (const key of ["signal", "gradient", "byInput"] as const) {
      const expected = with_.measured[key];
      const same = (value: number, at: number) =>
        value === expected[at] || Math.abs(value - expected[at]) < 1e-13 * Math.abs(expected[at]);
      // What is not finite is the same, too: an infinite number times a weight of zero is NaN, and may not be left out.
      without.measured[key].forEach((value, at) => {
        expect(same(value, at) || (Number.isNaN(value) && Number.isNaN(expected[at])), `${key} ${at}: ${value}`).toBe(
          true,
        );
      });
    }
    const [mixing, all] = [without.measured.mixing, with_.measured.mixing];
    mixing?.compositeForwardGain.forEach((gain, at) => {
      expect(Math.abs(gain - all!.compositeForwardGain[at])).not.toBeGreaterThan(1e-14 * gain);
    });
    expect(without.stack.parameters.every(({ gradient }) => gradient.every((one) => one === 0))).toBe(true);
    if (scale === 1)
      expect(with_.stack.parameters.some(({ gradient }) => gradient.some((one) => one !== 0))).toBe(true);
  });
});

describe.each(ALL)("a stack of %o", (connection) => {
  const options: NetworkOptions = { depth: 9, width: 6, connection, activation: "tanh", norm: "layer", seed: 5 };

  it("has the gradient of what it computes, along a random direction", () => {
    const stack = new Stack(options);
    const x = gaussian(5, 6, "input");
    const along = stack.parameters.map(({ name, value }) => gaussian(1, value.length, name).data);
    const step = 1e-6;
    const move = (size: number) =>
      stack.parameters.forEach(({ value }, place) => {
        for (let i = 0; i < value.length; i++) value[i] += size * along[place][i];
      });
    move(0.1); // away from what starts at zero
    const cotangent = gaussian(5, stack.dimOut, "cotangent");
    const dot = (x: Floats, y: Floats) => Array.from(x).reduce((total, value, i) => total + value * y[i], 0);
    const loss = () => dot(stack.forward(x).data, cotangent.data);
    loss();
    stack.backward(cotangent);
    const expected = stack.parameters.reduce((total, { gradient }, place) => total + dot(gradient, along[place]), 0);
    move(step);
    const above = loss();
    move(-2 * step);
    const slope = (above - loss()) / (2 * step);
    expect(Math.abs(slope / expected - 1)).toBeLessThan(1e-6);
  });

  it("keeps each row to itself", () => {
    const stack = new Stack(options);
    const x = gaussian(5, 6, "input");
    const together = stack.forward(x);
    for (let i = 0; i < 5; i++) {
      const alone = stack.forward(matrixFrom(x.data.subarray(i * 6, (i + 1) * 6), 1, 6, "float64")).data;
      const row = together.data.subarray(i * stack.dimOut, (i + 1) * stack.dimOut);
      expect(norm(alone.map((value, j) => value - row[j]))).toBeLessThan(1e-13);
    }
  });

  it("does not change what it is given, and gives the same again", () => {
    const stack = new Stack(options);
    const x = gaussian(5, 6, "input");
    const cotangent = gaussian(5, stack.dimOut, "cotangent");
    const [xBefore, gBefore] = [x.data.slice(), cotangent.data.slice()];
    const both = [0, 1].map(() => {
      zeroGradients(stack.parameters);
      const y = stack.forward(x).data.slice();
      const byInput = stack.backward(cotangent).data.slice();
      return [...y, ...byInput, ...stack.parameters.flatMap(({ gradient }) => [...gradient])];
    });
    expect(both[1]).toEqual(both[0]);
    expect(x.data).toEqual(xBefore);
    expect(cotangent.data).toEqual(gBefore);
  });
});

describe("what hyper-connections and attention over depth start from", () => {
  const start = (connection: ConnectionOptions) => {
    const stack = new Stack({ depth: 12, width: 8, connection, activation: "tanh", seed: 2 });
    return stack.forward(gaussian(4, 8, "input")).data;
  };
  const residual = start({ name: "residual" });

  it.each([{ name: "hyper", head: "mean" }, { name: "manifold" }, { name: "attention", scale: "sum" }] as const)(
    "is the residual stack: %o",
    (connection) => {
      const found = start(connection);
      expect(norm(found.map((value, i) => value - residual[i])) / norm(residual)).toBeLessThan(1e-13);
    },
  );
});

describe("float32", () => {
  const options = { depth: 150, width: 16, connection: { name: "plain" }, activation: "sigmoid" } as const;

  const gradient = (precision: Precision) => {
    const stack = new Stack({ ...options, precision });
    stack.forward(gaussian(4, 16, "input", precision));
    stack.backward(gaussian(4, 16, "cotangent", precision));
    return stack.signals.gradient;
  };

  it("underflows where float64 does not", () => {
    const [single, double] = [gradient("float32"), gradient("float64")];
    expect(double[0]).toBeGreaterThan(0);
    expect(double[0]).toBeLessThan(1e-45);
    expect(single[0]).toBe(0);
    // Down to the smallest normal number both agree.
    double.forEach((value, layer) => {
      if (value > 1e-36) expect(Math.abs(single[layer] / value - 1)).toBeLessThan(1e-4);
    });
  });
});

describe("training", () => {
  /** Which of two coordinates is larger in magnitude: no linear function of them says. */
  const x = gaussian(64, 2, "points");
  const labels = Int32Array.from({ length: x.rows }, (_, i) => {
    return Math.abs(x.data[2 * i]) > Math.abs(x.data[2 * i + 1]) ? 1 : 0;
  });

  const trained = (connection: ConnectionOptions) => {
    const options = { depth: 40, width: 12, activation: "tanh", norm: "layer", preActivation: true } as const;
    const network = new Network({ ...options, connection, inputs: 2, classes: 2 });
    const steps = optimizer(network.parameters, { name: "adamw", lr: 5e-3 });
    for (let step = 0; step < 40; step++) {
      zeroGradients(network.parameters);
      network.backward(crossEntropy(network.forward(x), labels).gradient);
      steps.step();
    }
    const outputs = network.forward(x);
    return { loss: crossEntropy(outputs, labels).value, accuracy: accuracy(outputs, labels) };
  };

  it("fits at 40 layers with the residual connection, and not without: degradation", { timeout: 60_000 }, () => {
    const [plain, residual] = [trained({ name: "plain" }), trained({ name: "residual" })];
    expect(residual.accuracy).toBeGreaterThan(0.9);
    expect(residual.loss).toBeLessThan(plain.loss / 2);
  });
});

describe("options that are wrong", () => {
  const good: NetworkOptions = { depth: 3, width: 4, connection: { name: "plain" }, activation: "tanh" };

  it.each([
    [{ depth: 1001 }, "depth must be an integer from 1 to 1000, got 1001"],
    [{ width: 2.5 }, "width must be an integer from 1 to 1024, got 2.5"],
    [{ activation: "sine" }, "activation sine is not known. Known: linear"],
    [{ norm: "group" as never }, "norm group is not known"],
    [{ precision: "float16" as never }, "precision float16 is not known"],
    [{ connection: { name: "none" } as never }, "connection none is not known"],
    [{ connection: { name: "hyper", streams: 1 } }, "streams must be an integer from 2 to 16, got 1"],
    [{ connection: { name: "manifold", iterations: 0 } }, "iterations must be an integer from 1 to 1000, got 0"],
    [{ connection: { name: "dense", growth: 0 } }, "growth must be an integer"],
    [{ connection: { name: "attention", blockSize: 4 } }, "blockSize must be an integer from 1 to 3, got 4"],
    [{ classes: 1 }, "classes must be an integer from 2"],
    [{ seed: -1 }, "a seed must be an integer from 0"],
  ] satisfies [Partial<NetworkOptions>, string][])("%o are refused", (wrong, message) => {
    expect(() => new Network({ ...good, ...wrong })).toThrow(message);
  });
});
