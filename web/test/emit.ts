/**
 * The Python files that the explorer makes, for `tests/web/test_explorer_code.py` to run, beside what its figures show.
 *
 * Standard input: a list of links (what stands behind `#`). Standard output: for each its file, and by connection the
 * lines of the figures (signal, gradient, first update) and what the page asks `levada check`.
 */

import { readFileSync } from "node:fs";
import type { Response } from "../src/engine/protocol";
import { Session } from "../src/engine/session";
import { lines, type Quantity } from "../src/explorer/picture";
import type { Signals } from "../src/explorer/pool";
import { code } from "../src/explorer/pytorch";
import { checkRequest, decode, networkOptions, optimizerOptions, type Settings } from "../src/explorer/settings";

const QUANTITIES: readonly Quantity[] = ["signal", "gradient", "update"];

async function measured(settings: Settings, name: Settings["connections"][number]): Promise<Signals> {
  let found: Signals | null = null;
  const post = (response: Response) => {
    if (response.type === "error") throw new Error(response.message);
    if (response.type === "signals") found = response;
  };
  const session = new Session(post, async () => {});
  const network = networkOptions(settings, name);
  const optimizer = optimizerOptions(settings);
  await session.receive({ type: "configure", id: 0, network, optimizer, batch: settings.rows });
  await session.receive({ type: "run", id: 1 });
  return found!;
}

async function shown(settings: Settings, name: Settings["connections"][number]): Promise<object> {
  const signals = await measured(settings, name);
  const drawn = QUANTITIES.map((quantity) => [
    quantity,
    // JSON has no infinity and no NaN: as text.
    Array.from(lines(quantity, [{ name, signals }], settings)[0].y, (y) => (Number.isFinite(y) ? y : String(y))),
  ]);
  return { ...Object.fromEntries(drawn), asked: checkRequest(settings, name) };
}

const links = JSON.parse(readFileSync(0, "utf8")) as string[];
const answers = links.map(async (link) => {
  const { settings, refused } = decode(link);
  if (refused.length > 0) throw new Error(refused.join(" "));
  const all = settings.connections.map(async (name) => [name, await shown(settings, name)] as const);
  return { code: code(settings), connections: Object.fromEntries(await Promise.all(all)) };
});
process.stdout.write(JSON.stringify(await Promise.all(answers)));
