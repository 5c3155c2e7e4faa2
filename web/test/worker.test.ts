import { Worker } from "node:worker_threads";
import { gzipSync } from "node:zlib";
import code from "virtual:kernels";
import { build, type PluginBuild } from "esbuild";
import { expect, it } from "vitest";
import type { Request, Response } from "../src/engine/protocol";

/** What a worker of node lacks of one of the web. */
const SCOPE = `
const { parentPort } = require("node:worker_threads");
globalThis.self = globalThis;
globalThis.postMessage = (message, transfer) => parentPort.postMessage(message, transfer);
globalThis.addEventListener = (_, listen) => parentPort.on("message", (data) => listen({ data }));
`;

/** What the build puts in the place of `virtual:kernels`. */
function provide({ onResolve, onLoad }: PluginBuild): void {
  onResolve({ filter: /^virtual:kernels$/ }, ({ path }) => ({ path, namespace: "virtual" }));
  onLoad({ filter: /.*/, namespace: "virtual" }, () => ({ contents: `export default ${JSON.stringify(code)};` }));
}

it("runs as one file, in a thread of its own, without a page", { timeout: 60_000 }, async () => {
  const entry = new URL("../src/engine/worker.ts", import.meta.url).pathname;
  const built = await build({
    entryPoints: [entry],
    bundle: true,
    format: "iife",
    minify: true,
    write: false,
    plugins: [{ name: "kernels", setup: provide }],
  });
  const [{ text }] = built.outputFiles;
  expect(gzipSync(text).length).toBeLessThan(32_000);
  const worker = new Worker(SCOPE + text, { eval: true });
  try {
    const responses: Response[] = [];
    const answered = new Promise<void>((resolve, reject) => {
      worker.on("error", reject);
      worker.on("message", (response: Response) => {
        responses.push(response);
        if (response.type === "done" || response.type === "error") resolve();
      });
    });
    const send = (request: Request) => worker.postMessage(request);
    const inputs = Float32Array.from({ length: 40 }, (_, i) => Math.sin(i));
    const labels = Int32Array.from({ length: 20 }, (_, i) => (inputs[2 * i] > 0 ? 1 : 0));
    const network = { depth: 30, width: 8, activation: "tanh", connection: { name: "manifold" } } as const;
    const optimizer = { name: "adamw", lr: 0.01 } as const;
    send({
      type: "configure",
      id: 1,
      network: { ...network, inputs: 2, classes: 2 },
      optimizer,
      data: { inputs, labels },
    });
    send({ type: "run", id: 2 });
    send({ type: "train", id: 3, steps: 1e9, every: 1e9 });
    send({ type: "cancel", id: 3 });
    await answered;
    expect(responses.map(({ type, id }) => [type, id])).toEqual([
      ["configured", 1],
      ["signals", 2],
      ["done", 3],
    ]);
    expect(responses[2]).toMatchObject({ cancelled: true });
  } finally {
    await worker.terminate();
  }
});
