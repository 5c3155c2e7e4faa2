import { describe, expect, it } from "vitest";
import golden from "../golden/theory.json";
import { activation, activationNames } from "../src/engine/activation";
import { coherentResidual } from "../src/engine/coherence";
import { matrixFrom, rms } from "../src/engine/matrix";
import { type NetworkOptions, Stack } from "../src/engine/network";
import { Random } from "../src/engine/random";
import {
  gaussLegendre,
  logCumulative,
  logPowers,
  moments,
  predict,
  propagate,
  propagateResidual,
} from "../src/engine/theory";
import { expectClose } from "./golden";

describe("moments", () => {
  it.each(golden.moments)("of $name are levada's", ({ name, q, first, second, slope }) => {
    q.forEach((variance, place) => {
      const found = moments(activation(name), variance);
      // A mean that is zero by symmetry is a sum of terms that cancel: it is measured by the root mean square.
      expect(Math.abs(found.first - first[place])).toBeLessThan(1e-12 * Math.sqrt(second[place]));
      expectClose("second moment", [found.second], [second[place]], "float64");
      expectClose("second moment of the slope", [found.slope], [slope[place]], "float64");
    });
  });

  it("are the limits at zero and at infinity", () => {
    expect(moments(activation("sigmoid"), 0).second).toBe(0.25);
    expect(moments(activation("sigmoid"), 0).slope).toBeCloseTo(1 / 16, 14);
    expect(moments(activation("tanh"), Number.POSITIVE_INFINITY).second).toBeCloseTo(1, 12);
  });

  it.each(activationNames)("of %s go on beyond the largest q that is integrated", (name) => {
    const phi = activation(name);
    const [near, far] = [moments(phi, 1e30), moments(phi, 1e60)];
    const bounded = ["sigmoid", "tanh", "erf", "hardtanh"].includes(name);
    expect(far.second / near.second).toBeCloseTo(bounded ? 1 : 1e30, bounded ? 12 : -18);
    expect(far.slope).toBe(near.slope);
  });
});

describe("trajectories", () => {
  it("of layers that grow are a straight line of logarithms to the end of float32 and beyond", () => {
    const options = { depth: 100, width: 32, activation: "relu", init: { name: "he", gain: 8 } } as const;
    const { signal } = predict({ ...options, connection: { name: "plain" } })!;
    signal.slice(1).forEach((size, layer) => {
      expect(Math.log(size) / ((layer + 1) * Math.log(8))).toBeCloseTo(1, 12);
    });
  });

  it.each(golden.paths)("of $name with weight variance $weightVariance are levada's", (path) => {
    const network = { ...path, activation: activation(path.name) };
    const found = {
      plain: propagate(network),
      activationFirst: propagateResidual(network, true, 0.5),
      activationLast: propagateResidual(network, false, 0.5),
    };
    for (const kind of ["plain", "activationFirst", "activationLast"] as const) {
      expectClose(`${kind} q`, found[kind].q, path[kind].q, "float64");
      expectClose(`${kind} chi`, found[kind].chi, path[kind].chi, "float64");
      const gradient = logCumulative(found[kind].chi).map(Math.exp);
      gradient.forEach((value, layer) => {
        expect(Math.abs(value / path[kind].cumulative[layer] - 1)).toBeLessThan(1e-12);
      });
    }
  });

  it.each(golden.paths)("of $name with weight variance $weightVariance have levada's coherent gradient", (path) => {
    const network = { ...path, activation: activation(path.name) };
    const { logGradient, signal, chi } = coherentResidual(network, 1 / 32)!;
    logGradient.forEach((log, layer) => {
      expect(Math.abs(Math.exp(log) / path.coherent[layer] - 1)).toBeLessThan(1e-11);
    });
    const independent = propagateResidual(network, false);
    expectClose("signal", signal, Array.from(independent.q, Math.sqrt), "float64");
    expectClose("chi", chi, Array.from(independent.chi), "float64");
  });

  it("have the coherent gradient also where it is no number any more, and none where the state is none", () => {
    const network = { activation: activation("relu"), weightVariance: 2, biasVariance: 0, q0: 1 };
    const { logGradient } = coherentResidual({ ...network, depth: 1000 }, 1 / 32)!;
    expect(logGradient[0] / 1000).toBeCloseTo(Math.log(1.7), 1);
    expect(coherentResidual({ ...network, depth: 5000 }, 1 / 32)).toBeNull();
    // A gradient that is independent of the state: two to the power of half the depth.
    expect(coherentResidual({ ...network, depth: 30 }, 0)!.logGradient[0]).toBeCloseTo(15 * Math.LN2, 10);
  });
});

/** Root mean squares of a wide network's signal and gradient, over those at its input and its output. */
function measure(options: NetworkOptions, rows: number) {
  const stack = new Stack(options);
  const { width } = options;
  const drawn = (name: string) => {
    const x = matrixFrom(new Float64Array(rows * width), rows, width, "float64");
    new Random(1, name).fillNormal(x.data, 1);
    return x;
  };
  const x = drawn("input");
  stack.forward(x);
  stack.backward(drawn("cotangent"));
  return { stack, input: rms(x.data) };
}

describe("what is measured", () => {
  const shared = { depth: 12, width: 256, init: { name: "pytorch_default" } } as const;

  it.each([
    ["relu", { name: "plain" }, false],
    ["tanh", { name: "plain" }, true],
    ["relu", { name: "residual" }, true],
    ["tanh", { name: "residual" }, false],
  ] as const)("is near the prediction: %s, %o, activation first: %s", (name, connection, preActivation) => {
    const options = { ...shared, activation: name, connection, preActivation };
    const { stack, input } = measure(options, 16);
    const predicted = predict(options, input)!;
    const { signal, gradient } = stack.signals;
    predicted.signal.forEach((value, layer) => {
      expect(Math.abs(Math.log(signal[layer] / value))).toBeLessThan(0.25);
    });
    const decay = Math.log(gradient[0] / gradient[shared.depth]) / shared.depth;
    expect(Math.abs(decay - predicted.logGradient[0] / shared.depth)).toBeLessThan(0.03);
  });

  it.each([16, 32, 64])("is that of residual ReLUs of width %i, whose mean carries a part of the gradient", (width) => {
    const options = { activation: "relu", connection: { name: "residual" }, depth: 50, width } as const;
    const rates = Array.from({ length: 9 }, (_, seed) => {
      const he = { ...options, init: { name: "he" }, seed } as const;
      const { stack } = measure(he, 16);
      const { gradient } = stack.signals;
      return Math.log(gradient[1] / gradient[50]) / 49;
    }).sort((a, b) => a - b);
    const { logGradient, chi } = predict({ ...options, init: { name: "he" } })!;
    const predicted = (logGradient[1] - logGradient[50]) / 49;
    expect(Math.abs(rates[4] - predicted)).toBeLessThan(0.02);
    expect(rates[0]).toBeGreaterThan(Math.log(chi[0]) / 2 + 0.1); // and not the square root of chi
  });

  it("breaks the line of 0.25^n, which counts slopes and no weights", () => {
    const options = { ...shared, activation: "sigmoid", connection: { name: "plain" } } as const;
    const line = logPowers(0.25, shared.depth)[0];
    const decay = (weightVariance: number) => {
      const { stack } = measure({ ...options, init: { name: "gaussian", weightVariance, biasVariance: 0 } }, 16);
      return Math.log(stack.signals.gradient[0] / stack.signals.gradient[shared.depth]);
    };
    expect(decay(1)).toBeLessThan(line);
    expect(decay(4)).toBeGreaterThan(line);
  });

  it.each([
    ["plain", false, 1.3],
    ["plain", true, 1.3],
    ["residual", true, Math.sqrt(1 + 1.3 ** 2)],
  ] as const)(
    "is exact for ReLU and He's weights times 1.3: %s, activation first: %s",
    (name, preActivation, factor) => {
      const init = { name: "he", gain: 1.3 } as const;
      const options = { ...shared, activation: "relu", connection: { name }, preActivation, init };
      const { signal, logGradient } = predict(options, 1)!;
      for (let layer = 0; layer <= shared.depth; layer++) {
        expect(signal[layer] / factor ** layer).toBeCloseTo(1, 9);
        expect(logGradient[layer]).toBeCloseTo((shared.depth - layer) * Math.log(factor), 9);
      }
    },
  );

  it("is predicted only where theory covers it", () => {
    const options = { ...shared, activation: "relu", connection: { name: "hyper" } } as const;
    expect(predict(options)).toBeNull();
    expect(predict({ ...options, connection: { name: "plain" }, norm: "layer" })).toBeNull();
  });
});

it("integrates polynomials exactly", () => {
  const { z, weights } = gaussLegendre(4);
  const sixth = z.reduce((total, at, place) => total + weights[place] * at ** 6, 0);
  expect(sixth).toBeCloseTo(2 / 7, 14);
});
