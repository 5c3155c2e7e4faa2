/** Layers that are taken again: what comes of them is what new ones give, to the last bit. */

import { expect, it } from "vitest";
import type { ConnectionOptions } from "../src/engine/connections/index";
import { Layers } from "../src/engine/layers";
import type { Initialisation } from "../src/engine/linear";
import { matrixFrom } from "../src/engine/matrix";
import { requireGradients } from "../src/engine/module";
import { Network, type NetworkOptions } from "../src/engine/network";
import { Session } from "../src/engine/session";

const CONNECTIONS: readonly ConnectionOptions[] = [
  { name: "plain" },
  { name: "highway" },
  { name: "dense", growth: 2 },
  { name: "manifold" },
  { name: "identity" },
  { name: "attention" },
];

function passed(options: NetworkOptions, known?: Layers): number[] {
  const network = new Network(options, known);
  requireGradients(network.parameters, false);
  const x = matrixFrom([1, -2, 3, 0.5, 0.25, -1], 2, 3, "float64");
  const y = network.forward(x);
  const g = network.backward(matrixFrom(y.data.map(Math.cos), y.rows, y.cols, "float64"));
  return [...y.data, ...g.data, ...network.stack.signals.signal, ...network.stack.signals.gradient];
}

const options = (connection: ConnectionOptions, more: Partial<NetworkOptions> = {}): NetworkOptions => ({
  depth: 5,
  width: 3,
  connection,
  activation: "tanh",
  norm: "layer",
  ...more,
});

it.each(CONNECTIONS)("any depth, weights, seed and activation of $name after another", (connection) => {
  const known = new Layers();
  const init: Initialisation = { name: "gaussian", weightVariance: 2, biasVariance: 1 };
  for (const more of [
    {},
    { depth: 3 },
    { depth: 7 },
    { init },
    { init: { ...init, gain: 2 }, depth: 2 },
    { init, depth: 7 }, // the layers behind the second were drawn without the gain
    { seed: 4 },
    { activation: "relu" },
    { preActivation: true },
    { bias: false },
    {},
  ]) {
    expect(passed(options(connection, more), known)).toEqual(passed(options(connection, more)));
  }
});

it("takes what there is, of networks that differ in depth or initialisation alone", () => {
  const known = new Layers();
  const weights = (more: Partial<NetworkOptions>) =>
    new Network(options({ name: "plain" }, more), known).stack.weights.map(({ value }) => value);
  const first = weights({});
  expect(weights({ depth: 7 }).slice(0, 5)).toEqual(first);
  expect(weights({ init: { name: "he" } })[4]).toBe(first[4]);
  expect(weights({ seed: 1 })[0]).not.toBe(first[0]);
  // Many others later, of which each has a quarter of the room, the first are gone.
  for (const seed of [2, 3, 4, 5]) weights({ seed, depth: 1, width: 1024 });
  expect(weights({})[0]).not.toBe(first[0]);
});

it("a network that learns leaves the others' weights as they are", async () => {
  const found: Float64Array[] = [];
  const session = new Session(
    (response) => {
      if (response.type === "signals") found.push(response.measured.signal);
      if (response.type === "error") throw new Error(response.message);
    },
    () => Promise.resolve(),
  );
  const network: NetworkOptions = { ...options({ name: "residual" }), inputs: 2, classes: 2 };
  const data = { inputs: Float64Array.of(1, 2, -1, 3), labels: Int32Array.of(0, 1) };
  const run = async () => {
    await session.receive({ type: "configure", id: 0, network });
    await session.receive({ type: "run", id: 1 });
  };
  await run();
  await session.receive({ type: "configure", id: 2, network, data, optimizer: { name: "sgd", lr: 1 } });
  await session.receive({ type: "train", id: 3, steps: 5 });
  await run();
  expect(found[1]).toEqual(found[0]);
});
