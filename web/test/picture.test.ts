/** What the page says of what was measured. */

import { expect, test } from "vitest";
import type { ConnectionName } from "../src/engine/connections/index";
import { Session } from "../src/engine/session";
import { decay, lines, lost, reading, updateReading } from "../src/explorer/picture";
import type { Signals } from "../src/explorer/pool";
import { CONNECTIONS, DEFAULTS, networkOptions, optimizerOptions, type Settings } from "../src/explorer/settings";
import { short } from "../src/page/number";

async function measure(name: ConnectionName, part: Partial<Settings>): Promise<[Signals, Settings]> {
  const settings = { ...DEFAULTS, ...part };
  let signals: Signals | null = null;
  const session = new Session(
    (response) => {
      if (response.type === "signals") signals = response;
    },
    async () => {},
  );
  const network = networkOptions(settings, name);
  await session.receive({ type: "configure", id: 0, network, optimizer: optimizerOptions(settings), batch: 32 });
  await session.receive({ type: "run", id: 1 });
  return [signals!, settings];
}

/** As if it had been measured: a gradient of one's own. */
function made(gradient: number[], predicted: number[] | null = null): Signals {
  const signal = Float64Array.from(gradient, () => 1);
  const measured = {
    signal,
    gradient: Float64Array.from(gradient),
    outputGradient: gradient.at(-1)!,
    weightGradient: signal,
    loss: null,
    accuracy: null,
  };
  const theory = predicted && { signal, logGradient: Float64Array.from(predicted), chi: signal };
  return { type: "signals", id: 0, measured, predicted: theory, mixing: null, update: null, milliseconds: 1 };
}

const geometric = (rate: number, depth: number) => Array.from({ length: depth + 1 }, (_, l) => rate ** (depth - l));

test("the rate per layer is that of a geometric line", () => {
  const { logRate, logPredicted, first } = decay(made(geometric(0.4, 20)));
  expect(Math.exp(logRate!)).toBeCloseTo(0.4, 12);
  expect([logPredicted, first]).toEqual([null, 1]);
  expect(Math.exp(decay(made([0, 0, 0, 1e-30, 1e-20, 1e-10, 1])).logRate!)).toBeCloseTo(1e-10, 20);
  expect(decay(made([0.5, 1])).first).toBe(0);
  expect(decay(made([0, 0])).logRate).toBeNull();
});

test("a gradient as predicted is read as such", () => {
  const logs = geometric(0.408, 20).map(Math.log);
  const signals = made(geometric(0.41, 20), logs);
  expect(reading({ name: "plain", signals }, DEFAULTS)).toBe(
    "plain: at layer 1 the gradient is 4.4×10⁻⁸ of what it is at the output: ×\u00a00.41 per layer, as predicted (0.408).",
  );
  expect(reading({ name: "plain", signals: made(geometric(0.5, 20), logs) }, DEFAULTS)).toContain(
    "×\u00a00.5 per layer, where theory says 0.408",
  );
  expect(reading({ name: "plain", signals: made(geometric(0.39, 20), logs) }, DEFAULTS)).toContain(
    "×\u00a00.39 per layer, as predicted (0.408).",
  );
});

test("theory is drawn from where the gradient begins, and as it is", () => {
  const logs = geometric(0.408, 20).map(Math.log);
  const signals = made(
    geometric(0.4, 20).map((one) => 2 * one),
    logs,
  );
  signals.measured.signal.fill(3);
  const relu = { ...DEFAULTS, activation: "relu" };
  const [measured, predicted] = lines("gradient", [{ name: "plain", signals }], relu);
  expect([measured.style, predicted.style, predicted.logs]).toEqual(["measured", "predicted", true]);
  expect(measured.y).toBe(signals.measured.gradient);
  Array.from(predicted.y).forEach((log, layer) => {
    expect(log).toBeCloseTo(logs[layer] + Math.log(2), 12);
  });
  const [own, theory] = lines("signal", [{ name: "plain", signals }], relu);
  expect([own.y, theory.y]).toEqual([signals.measured.signal, signals.predicted!.signal]);
});

test("the first step is told by what it moves", () => {
  const told = (...update: number[]) =>
    updateReading({ name: "plain", signals: { ...made([1, 1]), update: Float64Array.from(update) } }, DEFAULTS);
  expect(told(0.5, 0.25)).toBe(
    "plain: the first step moves the weights by 0.5 of their size at layer 1 and by 0.25 of their size at layer 2.",
  );
  expect(told(0, 0, 0.1)).toContain("In 2 layers no weight changes at all: the step is zero, or too small");
  expect(told(0, 0)).toBe("plain: the first step changes no weight.");
  expect(told(Number.POSITIVE_INFINITY)).toBe("plain: the first step leaves the range of float32.");
  expect(updateReading({ name: "plain", signals: made([1, 1]) }, DEFAULTS)).toBe("");
});

test("whole logarithms are compared, within what finite width does", async () => {
  const told = async (depth: number, part: Partial<Settings> = {}) => {
    const he = { activation: "relu", init: "he", precision: "float64", depth, ...part } as const;
    const [signals, settings] = await measure("plain", he);
    return { apart: decay(signals).apart!, text: reading({ name: "plain", signals }, settings) };
  };
  const deep = await told(1000);
  expect(deep.apart).toBeLessThan(-30); // a factor of 10¹³ and more
  expect(deep.text).toContain(
    "where theory says 1 for infinite width; at this depth, 31 times the width, finite width",
  );
  const middle = await told(200);
  expect(Math.abs(middle.apart)).toBeGreaterThan(Math.sqrt((5 / 4) * (199 / 32)));
  expect(middle.text).toContain("finite width");
  expect((await told(50, { width: 128 })).text).toContain("as predicted (1)");

  const off = (apart: number, depth: number) => {
    const signals = made(geometric(Math.exp(apart / (depth - 1)), depth), Array(depth + 1).fill(0));
    return reading({ name: "plain", signals }, DEFAULTS);
  };
  for (const depth of [50, 200, 1000]) {
    const deviation = Math.sqrt(((5 / 4) * (depth - 1)) / 32);
    expect(off(-0.9 * deviation, depth)).toContain("as predicted (1)");
    expect(off(-1.1 * deviation, depth)).toContain("finite width");
    const bare = /where theory says 1\.$/;
    expect(off(-1.01 * (deviation ** 2 + 3 * deviation), depth)).toMatch(bare);
    expect(off(3.1 * deviation, depth)).toMatch(bare);
  }
});

test("there is no rate where a signal is not finite", () => {
  const signals = made([0.5, 0.5, 1], [0, 0, 0]);
  const signal = Float64Array.of(1, 2, Number.POSITIVE_INFINITY);
  const { logRate, apart } = decay({ ...signals, measured: { ...signals.measured, signal } });
  expect([logRate, apart]).toEqual([null, null]);
});

test("zero is named by what made it", () => {
  const under = made([0, 0, 1e-44, 1e-36, 1e-28]);
  expect(lost(under, DEFAULTS)).toBe("underflow");
  expect(reading({ name: "plain", signals: under }, DEFAULTS)).toContain(
    "From layer 1 to the input the gradient is exactly zero: it is below 1.4×10⁻⁴⁵, the smallest number that float32 holds (underflow).",
  );
  const dead = made([0, 0, 0.3, 0.5, 1]);
  expect(lost(dead, DEFAULTS)).toBe("dead");
  expect(reading({ name: "plain", signals: dead }, DEFAULTS)).toContain("below layer 2 the gradient is exactly zero");
  expect(lost(made([0, 1e-30, 1e-10, 1]), DEFAULTS)).toBe("underflow"); // 1e-50 would have come
  expect(lost(made([0, 1e-30, 1e-10, 1]), { ...DEFAULTS, precision: "float64" })).toBe("dead");
});

test("what a layer gets is told beside the gradient that the output was given", async () => {
  const narrow = { width: 2, rows: 2, depth: 8, seed: 3 } as const;
  const [hyper, settings] = await measure("hyper", narrow);
  expect(Math.abs(hyper.measured.outputGradient - 1)).toBeGreaterThan(0.04); // few draws, and no mean of many
  expect(reading({ name: "hyper", signals: hyper }, settings)).toContain("gets 4 times the gradient at the output");
  const [attention] = await measure("attention", narrow);
  expect(reading({ name: "attention", signals: attention }, settings)).toContain(
    "mean of 9 sources, the input and sums of layers: each has 1/9 of it, and the last layer 0.11 of its gradient",
  );
});

test("overflow and NaN are said", () => {
  const [inf, nan] = [made([Number.POSITIVE_INFINITY, 1]), made([Number.NaN, Number.POSITIVE_INFINITY])];
  expect(reading({ name: "plain", signals: inf }, DEFAULTS)).toContain("float32 holds nothing above 3.4×10³⁸");
  expect(reading({ name: "plain", signals: nan }, DEFAULTS)).toContain("NaN");
});

test("a deep sigmoid stack underflows in float32, and not in float64", async () => {
  const deep = { depth: 120 } as const;
  const [single, settings] = await measure("plain", deep);
  expect(lost(single, settings)).toBe("underflow");
  const [double, exact] = await measure("plain", { ...deep, precision: "float64" });
  expect(lost(double, exact)).toBeNull();
  expect(Math.abs(decay(double).logRate! - decay(double).logPredicted!)).toBeLessThan(0.05);
});

test("lines of every quantity, predictions where theory covers them, and 0.25 for the sigmoid alone", async () => {
  const [plain, settings] = await measure("plain", { depth: 10 });
  const [highway] = await measure("highway", { depth: 10 });
  const all = [
    { name: "plain", signals: plain },
    { name: "highway", signals: highway },
  ] as const;
  const labels = (quantity: "signal" | "gradient" | "update", chosen: Settings) =>
    lines(quantity, all, chosen).map(({ label }) => label);
  expect(labels("signal", settings)).toEqual(["plain", "plain, predicted", "highway"]);
  expect(labels("gradient", settings)).toEqual(["plain", "plain, predicted", "highway", "0.25 per layer"]);
  expect(labels("gradient", { ...settings, activation: "tanh" })).not.toContain("0.25 per layer");
  expect(labels("update", settings)).toEqual(["plain", "highway"]);
  const [update] = lines("update", all, settings);
  expect([update.x[0], update.x[9]]).toEqual([1, 10]);
});

test("the line of 0.25 is exceeded where weights are large", async () => {
  const [signals] = await measure("plain", { depth: 30, gain: 4, precision: "float64" });
  expect(decay(signals).logRate!).toBeGreaterThan(Math.log(0.25) + 0.2);
});

test("every connection's sentence is true of its curve", async () => {
  const part = { depth: 24, activation: "relu", init: "he", gain: 0.8, precision: "float64", gateBias: -1 } as const;
  const [residual] = await measure("residual", part);
  const end = residual.measured.gradient[24]; // the gradient that all of them are given
  const told: Partial<Record<ConnectionName, string>> = {};
  for (const name of CONNECTIONS) {
    const [signals, settings] = await measure(name, part);
    const sentence = reading({ name, signals }, settings);
    told[name] = sentence;
    const { signal, gradient } = signals.measured;
    const last = gradient[24] / end;
    expect(sentence).toContain(name === "plain" || name === "residual" ? "at the output:" : "at the last layer:");
    if (name === "hyper") {
      expect(last).toBeCloseTo(4, 12);
      expect(sentence).toContain(`goes from ${short(signal[23], 2)} at the last layer to ${short(signal[24], 2)}`);
    }
    if (name === "manifold") expect(last).toBeCloseTo(1, 12);
    if (name === "identity") expect(last).toBeCloseTo(1, 1);
    if (name === "attention") {
      expect(last).toBeCloseTo(1 / 9, 12);
      expect(sentence).toContain("plain mean of 9 sources");
    }
    if (name === "highway") {
      expect(last).toBeGreaterThan(0.9 * 0.269);
      expect(last).toBeLessThan(1.2 * 0.269);
      expect(sentence).toContain("about 0.27 of what a layer computes");
    }
    if (name === "dense") {
      expect(Math.abs(last - 1)).toBeLessThan(0.15); // 8 numbers of each row
      expect(sentence).toContain("224 wide");
    }
    if (name === "post_norm") for (const one of signal.subarray(1)) expect(one).toBeCloseTo(1, 2);
  }
  expect(new Set(Object.values(told)).size).toBe(CONNECTIONS.length);
  const chi = 1 + 2 * 0.8 ** 2 * 0.5;
  expect(told.residual).toContain(`it would be ${short(Math.sqrt(chi), 3)}.`);
  expect(told.residual).toContain("1/32 of its square");
  const [first, before] = await measure("residual", { ...part, preActivation: true });
  expect(reading({ name: "residual", signals: first }, before)).not.toContain("Were the gradient");
});

test("a signal that underflows is no unit that died, and float64 is named where it holds what comes", async () => {
  const relu = { activation: "relu", init: "glorot" } as const;
  const told = async (part: Partial<Settings>) => {
    const [signals, settings] = await measure("plain", { ...relu, ...part });
    return { what: lost(signals, settings), text: reading({ name: "plain", signals }, settings), signals };
  };
  const deep = await told({ depth: 400 });
  const from = deep.signals.measured.signal.indexOf(0);
  expect(from).toBeGreaterThan(200);
  expect(deep.what).toBe("signal");
  expect(deep.text).toContain(`plain: From what layer ${from + 1} reads on the signal is exactly zero`);
  expect(deep.text).toContain("the signal is exactly zero: it is below 1.4×10⁻⁴⁵");
  expect(deep.text).toMatch(/In float64 it can still be seen\. Below layer 400 the gradient is exactly zero, too\.$/);
  expect((await told({ depth: 400, precision: "float64" })).what).toBeNull();

  const deeper = { depth: 1000, gain: 0.5 }; // about 0.35 a layer: 10⁻⁴⁵⁰
  expect((await told(deeper)).text).not.toContain("float64");
  expect((await told({ ...deeper, precision: "float64" })).what).toBe("signal");
  const sigmoid = { activation: "sigmoid", depth: 1000 } as const; // less than 0.25 a layer
  const flat = await told(sigmoid);
  expect([flat.what, flat.text.includes("float64")]).toEqual(["underflow", false]);
  expect((await told({ ...sigmoid, precision: "float64" })).what).toBe("underflow");

  const tanh = await told({ depth: 30, activation: "tanh", gain: 1e-3 });
  expect(tanh.what).toBe("signal");
  expect(tanh.text).toMatch(/reads on the signal is exactly zero: it is below/);
});
