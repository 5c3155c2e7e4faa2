/**
 * The Python files that the explorer makes, for `tests/web/test_explorer_code.py` to run, beside what the engine measures.
 *
 * Standard input: a list of links (what stands behind `#`). Standard output: for each its file, and by connection the
 * logarithm of the gradient's factor per layer, for several seeds.
 */

import { readFileSync } from "node:fs";
import type { Response } from "../src/engine/protocol";
import { Session } from "../src/engine/session";
import { decay } from "../src/explorer/picture";
import { code } from "../src/explorer/pytorch";
import { decode, networkOptions, type Settings } from "../src/explorer/settings";

const SEEDS = 8;

async function rates(settings: Settings, name: Settings["connections"][number]): Promise<number[]> {
  const found: number[] = [];
  const post = (response: Response) => {
    if (response.type === "error") throw new Error(response.message);
    if (response.type === "signals") found.push(decay(response).logRate!);
  };
  for (let seed = 1; seed <= SEEDS; seed++) {
    const session = new Session(post, async () => {});
    const network = networkOptions({ ...settings, seed }, name);
    await session.receive({ type: "configure", id: 0, network, batch: settings.rows });
    await session.receive({ type: "run", id: 1 });
  }
  return found;
}

const links = JSON.parse(readFileSync(0, "utf8")) as string[];
const answers = links.map(async (link) => {
  const { settings, refused } = decode(link);
  if (refused.length > 0) throw new Error(refused.join(" "));
  const measured = settings.connections.map(async (name) => [name, await rates(settings, name)] as const);
  return { code: code(settings), rates: Object.fromEntries(await Promise.all(measured)) };
});
process.stdout.write(JSON.stringify(await Promise.all(answers)));
