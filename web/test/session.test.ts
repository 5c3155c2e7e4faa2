import { describe, expect, it } from "vitest";
import type { NetworkOptions } from "../src/engine/network";
import type { OptimizerOptions } from "../src/engine/optimise";
import { buffers, type Data, type Request, type Response } from "../src/engine/protocol";
import { Random } from "../src/engine/random";
import { Session } from "../src/engine/session";

/** A session behind structured cloning, as behind a worker's messages. */
function connect() {
  const responses: Response[] = [];
  const session = new Session(
    (response) => responses.push(structuredClone(response, { transfer: buffers(response) })),
    () => new Promise((resolve) => setTimeout(resolve)),
  );
  return { responses, send: (request: Request) => session.receive(structuredClone(request)) };
}

const plain: NetworkOptions = { depth: 20, width: 8, connection: { name: "plain" }, activation: "relu" };
const classifier: NetworkOptions = { ...plain, connection: { name: "residual" }, inputs: 3, classes: 2, norm: "layer" };

function data(): Data {
  const inputs = new Float32Array(300);
  new Random(0, "data").fillNormal(inputs, 1);
  return { inputs, labels: Int32Array.from({ length: 100 }, (_, i) => (inputs[3 * i] > 0 ? 1 : 0)) };
}

function only<T extends Response["type"]>(responses: Response[], type: T): Extract<Response, { type: T }>[] {
  return responses.filter((response): response is Extract<Response, { type: T }> => response.type === type);
}

describe("a session", () => {
  it("runs a network and says what was measured and what theory predicts", async () => {
    const { responses, send } = connect();
    await send({ type: "configure", id: 1, network: plain });
    await send({ type: "run", id: 2 });
    expect(responses.map(({ type, id }) => [type, id])).toEqual([
      ["configured", 1],
      ["signals", 2],
    ]);
    expect(responses[0]).toMatchObject({ parameters: 20 * (64 + 8), dimOut: 8 });
    const [{ measured, predicted }] = only(responses, "signals");
    for (const values of [measured.signal, measured.gradient, predicted!.signal, predicted!.logGradient]) {
      expect(values).toHaveLength(21);
      expect(values.every(Number.isFinite)).toBe(true);
    }
    expect(measured.loss).toBeNull();
    const without = connect();
    await without.send({ type: "configure", id: 1, network: plain });
    await without.send({ type: "run", id: 2, theory: false });
    const [found] = only(without.responses, "signals");
    expect([found.measured, found.predicted]).toEqual([measured, null]);
  });

  it("says how streams are mixed", async () => {
    const { responses, send } = connect();
    await send({ type: "configure", id: 1, network: { ...plain, connection: { name: "manifold", streams: 3 } } });
    await send({ type: "run", id: 2 });
    const { mixing, predicted } = only(responses, "signals")[0];
    expect(predicted).toBeNull();
    expect(mixing!.matrices).toHaveLength(20 * 9);
    expect(mixing!.compositeForwardGain.every((gain) => Math.abs(gain - 1) < 1e-12)).toBe(true);
  });

  it("says what a first step of the optimizer would change, and leaves the weights as they are", async () => {
    const network: NetworkOptions = { ...plain, activation: "tanh", init: { name: "orthogonal" } };
    const run = async (optimizer?: OptimizerOptions) => {
      const { responses, send } = connect();
      await send({ type: "configure", id: 1, network, ...(optimizer ? { optimizer } : {}) });
      await send({ type: "run", id: 2 });
      await send({ type: "run", id: 3 });
      return only(responses, "signals");
    };
    const [{ update, measured }, second] = await run({ name: "sgd", lr: 0.5 });
    // Orthogonal rows of 8 have a root mean square of 1/sqrt(8).
    measured.weightGradient.forEach((gradient, layer) => {
      expect(update![layer] / (0.5 * gradient * Math.sqrt(8))).toBeCloseTo(1, 12);
    });
    const adamw = (await run({ name: "adamw", lr: 1e-3, weightDecay: 0 }))[0].update!;
    expect(adamw.every((ratio) => Math.abs(ratio / (1e-3 * Math.sqrt(8)) - 1) < 1e-3)).toBe(true);
    const alone = await run();
    expect(alone[0].update).toBeNull();
    const { signal, gradient } = second.measured;
    expect({ signal, gradient }).toEqual({ signal: alone[1].measured.signal, gradient: alone[1].measured.gradient });
    expect(alone[1].measured.weightGradient.every((one) => one === 0)).toBe(true);
  });

  it("gives the same numbers for the same seed, and others for another", async () => {
    const run = async (seed: number) => {
      const { responses, send } = connect();
      await send({ type: "configure", id: 1, network: { ...plain, seed } });
      await send({ type: "run", id: 2 });
      return only(responses, "signals")[0].measured;
    };
    expect(await run(1)).toEqual(await run(1));
    expect(await run(1)).not.toEqual(await run(2));
  });

  it("trains, and reports", async () => {
    const { responses, send } = connect();
    const optimizer = { name: "adamw", lr: 0.01 } as const;
    await send({ type: "configure", id: 1, network: classifier, optimizer, data: data() });
    await send({ type: "train", id: 2, steps: 61, every: 20 });
    const progress = only(responses, "progress");
    expect(progress.map(({ step }) => step)).toEqual([20, 40, 60, 61]);
    expect(progress.at(-1)!.measured.loss!).toBeLessThan(0.5 * Math.log(2));
    expect(progress.at(-1)!.measured.accuracy!).toBeGreaterThan(0.8);
    expect(responses.at(-1)).toEqual({ type: "done", id: 2, steps: 61, cancelled: false });
    // The last report is of one batch, which is all that came since the one before.
    const { measured, trained } = progress.at(-1)!;
    expect(trained).toEqual({ loss: measured.loss, accuracy: measured.accuracy });
    expect(progress[0].trained.loss).toBeGreaterThan(progress[1].trained.loss);
  });

  it("evaluates lesions: of a residual network one block is spared more easily than all", async () => {
    const { responses, send } = connect();
    const optimizer = { name: "adamw", lr: 0.01 } as const;
    await send({ type: "configure", id: 1, network: classifier, optimizer, data: data() });
    await send({ type: "train", id: 2, steps: 80, every: 80 });
    const all = Array.from({ length: 20 }, (_, layer) => layer);
    await send({ type: "evaluate", id: 3 });
    await send({ type: "evaluate", id: 4, order: all });
    await send({ type: "evaluate", id: 5, order: all.filter((layer) => layer !== 10) });
    await send({ type: "evaluate", id: 6, order: [] });
    await send({ type: "evaluate", id: 7, order: [20] });
    const [whole, same, without, none] = only(responses, "evaluated");
    expect(same.loss).toBe(whole.loss);
    expect(whole.accuracy).toBeGreaterThan(0.9);
    expect(without.loss).toBeGreaterThan(whole.loss);
    expect(without.loss).toBeLessThan(none.loss);
    expect(only(responses, "error")).toMatchObject([{ id: 7, message: "a layer must be in [0, 20), got 20." }]);
  });

  it("reports on held-out data, and examines what it trained", async () => {
    const { responses, send } = connect();
    const optimizer = { name: "adamw", lr: 0.01 } as const;
    const [inputs, labels] = [new Float32Array(60), new Int32Array(20)];
    new Random(9, "held out").fillNormal(inputs, 1);
    labels.forEach((_, i) => {
      labels[i] = inputs[3 * i] > 0 ? 1 : 0;
    });
    await send({ type: "configure", id: 1, network: classifier, optimizer, data: data(), heldOut: { inputs, labels } });
    await send({ type: "train", id: 2, steps: 80, every: 40 });
    await send({ type: "evaluate", id: 3 });
    await send({ type: "lesions", id: 4 });
    const all = Array.from({ length: 20 }, (_, layer) => layer);
    await send({ type: "evaluate", id: 5, order: all.filter((layer) => layer !== 7) });
    await send({ type: "paths", id: 6 });
    await send({ type: "weights", id: 7 });
    expect(only(responses, "error")).toEqual([]);
    const [evaluated, without] = only(responses, "evaluated");
    const { type: _, id: __, ...whole } = evaluated;
    expect(only(responses, "progress").map(({ heldOut }) => heldOut !== null)).toEqual([true, true]);
    expect(only(responses, "progress")[1].heldOut).toEqual(whole);
    const [lesions] = only(responses, "lesions");
    expect(lesions.whole).toEqual(whole);
    expect(lesions.loss).toHaveLength(20);
    expect(lesions.loss[7]).toBe(without.loss);
    expect(lesions.accuracy[7]).toBe(without.accuracy);
    const { paths } = only(responses, "paths")[0];
    expect(paths!.shares).toHaveLength(21);
    expect(paths!.mean).toBeGreaterThan(0);
    expect(paths!.mean).toBeLessThan(10);
    const { matrices } = only(responses, "weights")[0];
    expect(matrices.map(({ name, rows, cols }) => [name, rows, cols]).slice(0, 2)).toEqual([
      ["stem.weight", 8, 3],
      ["layers.0.branch.linear.weight", 8, 8],
    ]);
    expect(matrices).toHaveLength(21);
  });

  it("ends a lesion of every layer when another network takes the place", async () => {
    const { responses, send } = connect();
    const deep = { ...classifier, depth: 400 };
    await send({ type: "configure", id: 1, network: deep, data: data() });
    const lesioned = send({ type: "lesions", id: 2 });
    await send({ type: "configure", id: 3, network: classifier, data: data() });
    await lesioned;
    expect(only(responses, "lesions")).toEqual([]);
    expect(only(responses, "error")).toMatchObject([{ id: 2, message: "another network has taken this one's place." }]);
  });

  it("counts lesions where it is asked to, and ends them when they are cancelled", async () => {
    const { responses, send } = connect();
    const deep = { ...classifier, depth: 300 };
    await send({ type: "configure", id: 1, network: deep, data: data() });
    const lesioned = send({ type: "lesions", id: 2, counted: true });
    await expect.poll(() => only(responses, "counted").length).toBeGreaterThan(1);
    await send({ type: "cancel", id: 3 }); // of another
    await send({ type: "cancel", id: 2 });
    await lesioned;
    const counts = only(responses, "counted").map(({ done }) => done);
    expect(counts).toEqual([...new Set(counts)].sort((a, b) => a - b));
    expect(counts.at(-1)).toBeLessThan(300);
    expect(only(responses, "counted").every(({ id, of }) => id === 2 && of === 300)).toBe(true);
    expect(responses.at(-1)).toEqual({ type: "error", id: 2, message: "it was cancelled." });
    await send({ type: "configure", id: 4, network: classifier, data: data() });
    await send({ type: "lesions", id: 5 });
    expect(responses.at(-1)).toMatchObject({ type: "lesions", id: 5 });
    expect(only(responses, "counted").some(({ id }) => id === 5)).toBe(false);
  });

  it("follows no paths where layers are not residual", async () => {
    const { responses, send } = connect();
    const network = { ...classifier, connection: { name: "plain" } } as const;
    await send({ type: "configure", id: 1, network, data: data() });
    await send({ type: "paths", id: 2 });
    expect(only(responses, "paths")).toEqual([{ type: "paths", id: 2, paths: null }]);
  });

  it("measures a recurrent layer's memory without a network", async () => {
    const { responses, send } = connect();
    await send({ type: "remember", id: 1, layer: { cell: "gru", inputs: 2, units: 8, steps: 30, rows: 2 } });
    expect(only(responses, "remembered")[0].memory.curve).toHaveLength(31);
  });

  it("is cancelled between steps", async () => {
    const { responses, send } = connect();
    const optimizer = { name: "sgd", lr: 0.01 } as const;
    await send({ type: "configure", id: 1, network: classifier, optimizer, data: data() });
    const training = send({ type: "train", id: 2, steps: 1e9, every: 1e9 });
    await send({ type: "train", id: 3, steps: 1 });
    await send({ type: "cancel", id: 7 }); // of nothing
    await send({ type: "run", id: 4 });
    expect(only(responses, "signals")).toHaveLength(1);
    await send({ type: "cancel", id: 2 });
    await training;
    expect(only(responses, "error")).toMatchObject([{ id: 3, message: expect.stringContaining("still running") }]);
    expect(responses.at(-1)).toMatchObject({ type: "done", id: 2, cancelled: true });
  });

  it("ends the training of a network that another takes the place of, which can be trained at once and cancelled", async () => {
    const { responses, send } = connect();
    const optimizer = { name: "sgd", lr: 0.01 } as const;
    const configure = { type: "configure", network: classifier, optimizer, data: data() } as const;
    await send({ ...configure, id: 1 });
    const before = send({ type: "train", id: 2, steps: 1e9, every: 1e9 });
    await send({ ...configure, id: 3 });
    const after = send({ type: "train", id: 4, steps: 1e9, every: 1e9 });
    await before;
    await send({ type: "cancel", id: 4 });
    await after;
    const done = only(responses, "done").map(({ id, cancelled }) => [id, cancelled]);
    expect(done.sort()).toEqual([
      [2, true],
      [4, true],
    ]);
    expect(only(responses, "error")).toEqual([]);
  });

  it("answers what it cannot do with an error, and keeps the network that it has", async () => {
    const { responses, send } = connect();
    await send({ type: "run", id: 1 });
    await send({ type: "configure", id: 2, network: plain });
    await send({ type: "configure", id: 3, network: { ...plain, depth: 0 } });
    await send({ type: "configure", id: 4, network: plain, data: data() });
    await send({ type: "configure", id: 5, network: { ...classifier, inputs: 4 }, data: data() });
    await send({ type: "train", id: 6, steps: 1 });
    await send({
      type: "configure",
      id: 8,
      network: { ...plain, depth: 1000, connection: { name: "dense", growth: 32 } },
    });
    await send({ type: "configure", id: 9, network: { ...plain, width: 16, depth: 600 }, batch: 4096 });
    await send({ type: "run", id: 7 });
    const errors = only(responses, "error");
    expect(errors.map(({ id }) => id)).toEqual([1, 3, 4, 5, 6, 8, 9]);
    expect(errors[0].message).toBe("configure a network first.");
    expect(errors[3].message).toContain("100 rows of 4 inputs need 400 numbers, got 300");
    expect(errors[5].message).toContain("weights at most");
    expect(errors[6].message).toContain("keeps too much");
    expect(only(responses, "signals").map(({ id }) => id)).toEqual([7]);
  });

  it("hands over its arrays and copies none", () => {
    const array = new Float64Array(3);
    const measured = {
      signal: array,
      gradient: array.slice(),
      outputGradient: 1,
      weightGradient: array.slice(),
      loss: 1,
      accuracy: null,
    };
    const response: Response = {
      type: "progress",
      id: 1,
      step: 1,
      measured,
      trained: { loss: 1, accuracy: 0 },
      heldOut: null,
    };
    structuredClone(response, { transfer: buffers(response) });
    expect(array.byteLength).toBe(0);
  });
});
