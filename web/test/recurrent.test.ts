import { describe, expect, it } from "vitest";
import golden from "../golden/memory.json";
import layers from "../golden/recurrent.json";
import { matrixFrom, type Precision } from "../src/engine/matrix";
import { Random } from "../src/engine/random";
import type { CellName } from "../src/engine/recurrent/cells";
import { cotangents, type MemoryOptions, measureMemory, remember } from "../src/engine/recurrent/memory";
import {
  chronoBias,
  gateTimeScale,
  logCarried,
  memoryHorizon,
  nearZero,
  timeScale,
} from "../src/engine/recurrent/theory";
import { Unrolled } from "../src/engine/recurrent/unrolled";
import { expectClose, PRECISIONS, relativeError } from "./golden";

type Named = Record<string, number[] | undefined>;

const [INPUTS, UNITS] = [3, 4];

function layer(name: string, precision: Precision, parameters: Named): Unrolled {
  const made = new Unrolled({ cell: name as CellName, inputs: INPUTS, units: UNITS, precision });
  expect(made.parameters.map((own) => own.name)).toEqual(Object.keys(parameters));
  for (const own of made.parameters) own.value.set(parameters[own.name]!);
  return made;
}

describe.each(PRECISIONS)("in %s", (precision) => {
  it.each(layers)("$name is PyTorch's, forward and back through time", (case_) => {
    const made = layer(case_.name, precision, case_.parameters);
    const { steps, rows } = case_;
    const part = (values: number[]) => matrixFrom(values, rows, UNITS, precision).data;
    const x = matrixFrom(case_.input, steps * rows, INPUTS, precision);
    const y = made.forward(x, steps, case_.initial.map(part));
    expectClose("output", y.data, case_.output, precision);
    const cotangent = matrixFrom(case_.cotangent, steps * rows, UNITS, precision);
    const { byInput, byInitial } = made.backward(cotangent, case_.last.map(part));
    expectClose("by input", byInput.data, case_.byInput, precision);
    byInitial.forEach((found, i) => {
      expectClose("by the initial state", found, case_.byInitial[i], precision);
    });
    case_.byState.forEach((expected, i) => {
      expectClose(`by part ${i} of the state`, made.byState[i], expected, precision);
    });
    const gradients: Named = case_.byParameter;
    for (const own of made.parameters) expectClose(own.name, own.gradient, gradients[own.name]!, precision);
  });

  it.each(golden.curves)("the memory of $name over $steps steps is what levada measures", (case_) => {
    const made = layer(case_.name, precision, case_.parameters);
    const { steps, rows } = case_;
    const x = matrixFrom(case_.input, steps * rows, INPUTS, precision);
    const v = case_.cotangent.map((part) => matrixFrom(part, rows, UNITS, precision).data);
    const found = measureMemory(made, x, steps, v);
    expectClose("curve", found.curve, case_.curve, precision);
    expectClose("gates alone", found.gatesAlone, case_.gatesAlone, precision);
    expect(found.parts.map(({ name }) => name)).toEqual(Object.keys(case_.parts));
    for (const { name, curve } of found.parts) {
      expectClose(name, curve, (case_.parts as Named)[name]!, precision);
    }
    expectClose("slope", [found.slope], [case_.slope], precision);
    expectClose("horizon", [found.horizon], [case_.horizon], precision);
    expect(found.reached).toBe(case_.reached);
    if (case_.gate === null) expect(found.gate).toBeNull();
    else expectClose("gate", [found.gate!], [case_.gate], precision);
  });
});

describe("theory of memory", () => {
  const { theory } = golden;

  it("has levada's time scales and horizons", () => {
    expectClose("gate", theory.biases.map(gateTimeScale), theory.gateTimeScale, "float64");
    expectClose("time scale", theory.carries.map(timeScale), theory.timeScale, "float64");
    const horizons = theory.carries.map((carry) => memoryHorizon(carry));
    expectClose("horizon", horizons, theory.memoryHorizon, "float64");
    expectClose("chrono bias", theory.horizons.map(chronoBias), theory.chronoBias, "float64");
  });

  it.each(theory.laws)("has levada's law for a carry of $carry and a gain of $gain", ({ carry, gain, kept }) => {
    const found = logCarried(carry, gain, 300);
    [0, 1, 2, 7, 60, 300].forEach((k, place) => {
      // Of logarithms of 1,000 factorials the last digits are gone, in Python's too.
      expect(relativeError([Math.exp(found[k])], [kept[place]])).toBeLessThan(k > 50 ? 1e-11 : 1e-12);
    });
  });

  it("is what wide layers do near a state of zero", () => {
    for (const cell of ["rnn", "lstm", "gru"] as const) {
      const options = { cell, inputs: 1, units: 96, gain: 0.8, forgetBias: 1, seed: 3 };
      const made = new Unrolled(options);
      // No input and no biases but the forget gate's: the state stays zero.
      const [, , bih, bhh] = made.parameters;
      bhh.value.fill(0);
      bih.value.fill(0);
      if (cell !== "rnn") bih.value.fill(1, 96, 192);
      const steps = 8;
      const still = { data: new Float64Array(steps * 4), rows: steps * 4, cols: 1 };
      const parts = cell === "lstm" ? 2 : 1;
      const v = cotangents(parts, 4, 96, "float64", new Random(1, "cotangents"));
      const { curve } = measureMemory(made, still, steps, v);
      const { carry, gain } = nearZero(cell, 0.8, 1);
      const law = logCarried(carry, gain, steps);
      // Of an LSTM the law is the cell's: its slope is compared, from the second step on.
      const [from, to] = cell === "lstm" ? [2, 8] : [0, 8];
      const found = Math.log(curve[to] / curve[from]);
      expect(Math.abs(found - (law[to] - law[from])), cell).toBeLessThan(0.15);
    }
  });
});

describe("remember", () => {
  const options: MemoryOptions = { cell: "rnn", inputs: 4, units: 24, steps: 200, rows: 4 };

  it("gives a curve from 1 over 200 steps, with a horizon where it falls to 1/1000", () => {
    const { curve, horizon, reached } = remember(options);
    expect(curve).toHaveLength(201);
    expect(curve[0]).toBe(1);
    expect(reached).toBe(true);
    expect(curve[Math.floor(horizon)]).toBeGreaterThanOrEqual(1e-3);
    expect(curve[Math.ceil(horizon)]).toBeLessThan(1e-3);
  });

  it("remembers longer with a larger forget bias, and the gates alone say how long", () => {
    const found = [0, 2, 5].map((forgetBias) => remember({ ...options, cell: "lstm", forgetBias }));
    const horizons = found.map(({ horizon }) => horizon);
    expect(horizons[1]).toBeGreaterThan(1.5 * horizons[0]);
    expect(horizons[2]).toBeGreaterThan(5 * horizons[1]);
    expect(found[2].gate!).toBeGreaterThan(0.98);
  });

  it("underflows in float32 where float64 does not", () => {
    const gain = 0.3;
    const [single, double] = PRECISIONS.toReversed().map((precision) => remember({ ...options, gain, precision }));
    expect(double.curve.at(-1)!).toBeGreaterThan(0);
    expect(single.curve.at(-1)).toBe(0);
    expect(single.horizon / double.horizon).toBeCloseTo(1, 3);
  });

  it("keeps an orthogonal memory without slopes, and loses it with them", () => {
    const made = new Unrolled({ cell: "lstm", inputs: 2, units: 6, orthogonal: true, gain: 2, seed: 1 });
    const square = made.parameters[1].value.subarray(36, 72);
    for (let i = 0; i < 6; i++) {
      for (let j = 0; j < 6; j++) {
        let total = 0;
        for (let k = 0; k < 6; k++) total += square[i * 6 + k] * square[j * 6 + k];
        expect(total).toBeCloseTo(i === j ? 4 : 0, 12);
      }
    }
  });

  it.each([
    [{ cell: "mgu" as never }, "cell mgu is not known. Known: rnn, lstm, gru."],
    [{ units: 0 }, "units must be an integer from 1 to 256, got 0"],
    [{ steps: 1001 }, "steps must be an integer from 1 to 1000, got 1001"],
    [{ units: 256, steps: 1000, rows: 256 }, "keeps too much"],
  ])("refuses %o", (wrong, message) => {
    expect(() => remember({ ...options, ...wrong })).toThrow(message);
  });
});
