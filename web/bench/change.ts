/**
 * Time what a change of the explorer's depth costs its worker, by connection, with the page's defaults at depth 200.
 * `npm run bench:change`, `npm run bench:change update manifold`.
 *
 * The pieces of one change: making the network, its pass, theory, mixing, and where asked for the first update.
 * Processor time of the whole process, which a busy machine changes less than the clock's.
 */

import { accelerate } from "../src/engine/kernels";
import type { Response } from "../src/engine/protocol";
import { Session } from "../src/engine/session";
import { CONNECTIONS, DEFAULTS, networkOptions, optimizerOptions } from "../src/explorer/settings";
import { compiled } from "../wasm";

const REPEATS = 15;

function now(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

const quartile = (times: number[], share: number) =>
  times.toSorted((a, b) => a - b)[Math.round(share * (times.length - 1))].toFixed(1);

if (!process.argv.includes("typescript")) accelerate(await compiled("kernels/"));
let answer: Response | null = null;
const session = new Session(
  (response) => {
    answer = response;
  },
  () => Promise.resolve(),
);

const chosen = process.argv.slice(2).filter((name) => !["update", "typescript"].includes(name));
let sum = 0;
for (const name of CONNECTIONS) {
  if (chosen.length > 0 && !chosen.includes(name)) continue;
  const [configuring, running]: number[][] = [[], []];
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const settings = { ...DEFAULTS, depth: 200 - repeat };
    const start = now();
    const network = networkOptions(settings, name);
    await session.receive({
      type: "configure",
      id: 0,
      network,
      ...(process.argv.includes("update") ? { optimizer: optimizerOptions(settings) } : {}),
      batch: settings.rows,
    });
    const configured = now();
    await session.receive({ type: "run", id: 1 });
    configuring.push(configured - start);
    running.push(now() - configured);
    if ((answer as Response | null)?.type !== "signals") throw new Error(JSON.stringify(answer));
  }
  const all = configuring.map((one, at) => one + running[at]).slice(3);
  sum += Number(quartile(all, 0.5));
  console.log(
    `${name}: ${quartile(all, 0.5)} ms (${quartile(all, 0.25)} to ${quartile(all, 0.75)}), of which making ` +
      `${quartile(configuring.slice(3), 0.5)}; first ${(configuring[0] + running[0]).toFixed(0)}`,
  );
}
console.log(`sum ${sum.toFixed(0)}`);
