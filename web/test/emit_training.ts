/**
 * What the explorer's training shows of links, for `tests/web/test_explorer_learning.py` to compute with PyTorch.
 *
 * Standard input: a list of links (what stands behind `#`). Standard output: for each, and each of its connections, the
 * network, the rows of each batch, what every step and the held-out digits gave, and the lesions of what was trained.
 */

import { readFileSync } from "node:fs";
import type { Response } from "../src/engine/protocol";
import { Random } from "../src/engine/random";
import { Session } from "../src/engine/session";
import { decode, type Settings } from "../src/explorer/settings";
import { type Digits, digits } from "../src/explorer/train/digits";
import { BATCH, trainedBy, trainedNetwork } from "../src/explorer/train/plan";

async function trained(settings: Settings, name: Settings["connections"][number], { train, heldOut }: Digits) {
  const told: Response[] = [];
  const session = new Session(
    (response) => told.push(response),
    async () => {},
  );
  const network = trainedNetwork(settings, name, settings.trainDepth);
  const optimizer = trainedBy(settings);
  const steps = settings.trainSteps;
  await session.receive({ type: "configure", id: 0, network, optimizer, data: train, heldOut, batch: BATCH });
  await session.receive({ type: "train", id: 1, steps });
  await session.receive({ type: "lesions", id: 2 });
  for (const one of told) if (one.type === "error") throw new Error(one.message);
  const random = new Random(settings.seed, "batches");
  const rows = Array.from({ length: steps }, () =>
    Array.from({ length: BATCH }, () => random.below(train.labels.length)),
  );
  const progress = told.filter((one) => one.type === "progress");
  const lesions = told.find((one) => one.type === "lesions")!;
  return {
    network,
    lr: settings.trainLr,
    rows,
    loss: progress.map(({ trained }) => trained.loss),
    accuracy: progress.map(({ trained }) => trained.accuracy),
    heldOut: progress.map(({ heldOut }) => heldOut!.loss),
    lesions: { loss: Array.from(lesions.loss), accuracy: Array.from(lesions.accuracy) },
  };
}

const links = JSON.parse(readFileSync(0, "utf8")) as string[];
const data = await digits();
const answers = links.map(async (link) => {
  const { settings, refused } = decode(link);
  if (refused.length > 0) throw new Error(refused.join(" "));
  const all = settings.connections.map(async (name) => [name, await trained(settings, name, data)] as const);
  return Object.fromEntries(await Promise.all(all));
});
process.stdout.write(JSON.stringify(await Promise.all(answers)));
