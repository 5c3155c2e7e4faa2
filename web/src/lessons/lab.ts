/** The lessons' workers: asked when a question is, and what they found is kept. */

import type { ConnectionName } from "../engine/connections/index";
import type { Request, Response } from "../engine/protocol";
import type { CellName } from "../engine/recurrent/cells";
import type { Memory } from "../engine/recurrent/memory";
import type { Signals } from "../explorer/pool";
import { networkOptions, type Settings } from "../explorer/settings";
import { memoryOptions } from "../explorer/time/remembering.svelte";
import type { Digits } from "../explorer/train/digits";
import { BATCH, every, trainedBy, trainedNetwork } from "../explorer/train/plan";
import type { Lab, Trained } from "./measure";

type Without<R, K extends PropertyKey> = R extends unknown ? Omit<R, K> : never;
type Progress = Extract<Response, { type: "progress" }>;

/** What of an engine is needed here. */
export interface Worker {
  ask<Answer extends Response["type"]>(
    request: Without<Request, "id">,
    answer: Answer,
    progress?: (progress: Progress) => void,
  ): { answer: Promise<Extract<Response, { type: Answer }>> };
  close(): void;
}

const MOST_KEPT = 1024; // a draw is some kilobytes

export class Workers implements Lab {
  private readonly known = new Map<string, Promise<unknown>>();
  private own: Worker | null = null;
  private readonly training = new Set<Worker>();

  constructor(
    private readonly make: () => Worker,
    private readonly digits: () => Promise<Digits>,
  ) {}

  signals(settings: Settings, name: ConnectionName): Promise<Signals> {
    const network = networkOptions(settings, name);
    const job = { network, batch: settings.rows };
    return this.once(JSON.stringify(job), async () => {
      // Both are asked at once, so that nothing comes between them; an answer needs neither theory nor a first step.
      const configured = this.worker.ask({ type: "configure", ...job }, "configured").answer;
      const [signals] = await Promise.all([
        this.worker.ask({ type: "run", theory: false }, "signals").answer,
        configured,
      ]);
      return signals;
    });
  }

  memory(settings: Settings, cell: CellName): Promise<Memory> {
    const layer = memoryOptions(settings, cell);
    return this.once(JSON.stringify(layer), async () => {
      return (await this.worker.ask({ type: "remember", layer }, "remembered").answer).memory;
    });
  }

  trained(settings: Settings, name: Trained["name"]): Promise<Trained> {
    const network = trainedNetwork(settings, name, settings.trainDepth);
    const key = JSON.stringify([network, settings.trainLr, settings.trainSteps]);
    return this.once(key, () => this.train(settings, name));
  }

  close(): void {
    this.own?.close();
    this.own = null;
    for (const worker of this.training) worker.close();
    this.training.clear();
    this.known.clear();
  }

  private get worker(): Worker {
    this.own ??= this.make();
    return this.own;
  }

  /** The answer that was asked before, or a new one; one that failed may be asked again. */
  private once<T>(key: string, compute: () => Promise<T>): Promise<T> {
    const known = this.known.get(key);
    if (known) return known as Promise<T>;
    const found = compute();
    this.known.set(key, found);
    if (this.known.size > MOST_KEPT) this.known.delete(this.known.keys().next().value!);
    found.catch(() => this.known.delete(key));
    return found;
  }

  /** A network of its own, in a worker of its own. */
  private async train(settings: Settings, name: Trained["name"]): Promise<Trained> {
    const { train: data, heldOut } = await this.digits();
    const worker = this.make();
    this.training.add(worker);
    try {
      const network = trainedNetwork(settings, name, settings.trainDepth);
      const optimizer = trainedBy(settings);
      await worker.ask({ type: "configure", network, optimizer, data, heldOut, batch: BATCH }, "configured").answer;
      const { trainSteps: steps } = settings;
      const reports: Trained["reports"][number][] = [];
      await worker.ask(
        { type: "train", steps, every: every(steps) }, // as often as the tab that trains, which says the same losses
        "done",
        ({ step, trained, heldOut }) => {
          reports.push({ step, trained, heldOut: heldOut! });
        },
      ).answer;
      const { whole, accuracy } = await worker.ask({ type: "lesions" }, "lesions").answer;
      const { paths } = await worker.ask({ type: "paths" }, "paths").answer;
      return { name, reports, whole: whole.accuracy, without: accuracy, paths };
    } finally {
      this.training.delete(worker);
      worker.close();
    }
  }
}
