/** Networks that are trained side by side, each in a worker of its own, and a sweep over depth by a few workers. */

import type { ConnectionName } from "../../engine/connections/index";
import type { Request, Response, WeightMatrix } from "../../engine/protocol";
import type { Settings } from "../settings";
import type { Digits } from "./digits";
import { BATCH, every, keyOf, type Report, type Swept, trainedBy, trainedNetwork } from "./plan";

type Without<R, K extends PropertyKey> = R extends unknown ? Omit<R, K> : never;
type Progress = Extract<Response, { type: "progress" }>;

/** What of an engine is needed here. */
export interface Worker {
  ask<Answer extends Response["type"]>(
    request: Without<Request, "id">,
    answer: Answer,
    progress?: (progress: Progress) => void,
    counted?: (done: number, of: number) => void,
  ): { id: number; answer: Promise<Extract<Response, { type: Answer }>> };
  cancel(id: number): void;
  close(): void;
}

export type State = "new" | "training" | "stopped" | "done";

const words = (error: unknown): string => (error instanceof Error ? error.message : String(error));

function configure(worker: Worker, settings: Settings, name: ConnectionName, depth: number, digits: Digits) {
  const network = trainedNetwork(settings, name, depth);
  const { train: data, heldOut } = digits;
  const optimizer = trainedBy(settings);
  return worker.ask({ type: "configure", network, optimizer, data, heldOut, batch: BATCH }, "configured").answer;
}

/** One network and what was seen of its training. */
export class Run {
  reports = $state.raw<readonly Report[]>([]);
  state = $state<State>("new");
  error = $state<string | null>(null);
  /** The weights before the first step. */
  start: readonly WeightMatrix[] = [];
  private training: number | null = null;
  /** Steps that were made: a training that is stopped between two reports has made more than it reported. */
  private made = 0;

  constructor(
    readonly name: ConnectionName,
    readonly depth: number,
    readonly worker: Worker,
    private readonly settings: Settings,
    private readonly digits: Digits,
  ) {}

  get step(): number {
    return this.reports.at(-1)?.step ?? 0;
  }

  /** To the last step that is wanted, from where it stands. */
  async train(): Promise<void> {
    const { trainSteps } = this.settings;
    const fresh = this.state === "new";
    this.state = "training";
    try {
      if (fresh) {
        await configure(this.worker, this.settings, this.name, this.depth, this.digits);
        this.start = (await this.worker.ask({ type: "weights" }, "weights").answer).matrices;
      }
      const before = this.made;
      const asked = this.worker.ask(
        { type: "train", steps: trainSteps - before, every: every(trainSteps) },
        "done",
        ({ step, trained, heldOut }) => {
          this.reports = [...this.reports, { step: before + step, trained, heldOut: heldOut! }];
        },
      );
      this.training = asked.id;
      const { cancelled, steps } = await asked.answer;
      this.made += steps;
      this.state = cancelled ? "stopped" : "done";
    } catch (error) {
      this.error = words(error);
      this.state = "done";
    }
    this.training = null;
  }

  stop(): void {
    if (this.training !== null) this.worker.cancel(this.training);
  }
}

/** The chosen connections at one depth: the same digits in the same order, and the same first weights of each layer. */
export class Trainer {
  runs = $state.raw<readonly Run[]>([]);
  private readonly workers: Worker[] = [];
  private key = "";

  constructor(private readonly make: () => Worker) {}

  get state(): State {
    const states = this.runs.map(({ state }) => state);
    if (states.includes("training")) return "training";
    if (states.includes("stopped")) return "stopped";
    return states.includes("done") ? "done" : "new";
  }

  /** Forget networks that are not those of the settings any more. */
  match(settings: Settings): void {
    const key = JSON.stringify([keyOf(settings), settings.connections, settings.trainDepth]);
    if (key === this.key) return;
    this.key = key;
    for (const run of this.runs) run.stop();
    this.runs = [];
  }

  async start(settings: Settings, digits: Digits): Promise<void> {
    this.match(settings);
    if (this.state !== "stopped") {
      while (this.workers.length < settings.connections.length) this.workers.push(this.make());
      this.runs = settings.connections.map(
        (name, place) => new Run(name, settings.trainDepth, this.workers[place], settings, digits),
      );
    }
    await Promise.all(this.runs.filter(({ state }) => state !== "done").map((run) => run.train()));
  }

  stop(): void {
    for (const run of this.runs) run.stop();
  }

  close(): void {
    for (const worker of this.workers) worker.close();
  }
}

interface Job {
  readonly name: ConnectionName;
  readonly depth: number;
}

/** The loss at the end by depth, which fills in while it runs: the shallow networks first, since they take least. */
export class Sweep {
  swept = $state.raw<readonly Swept[]>([]);
  now = $state.raw<readonly Job[]>([]);
  state = $state<State>("new");
  error = $state<string | null>(null);
  private readonly workers: Worker[] = [];
  private readonly stops = new Map<Job, () => void>();
  private key = "";
  private left: Job[] = [];
  /** Counts starts and stops: a loop of an earlier one may still wait for its worker when the next begins. */
  private generation = 0;

  constructor(
    private readonly size: number,
    private readonly make: () => Worker,
  ) {}

  get total(): number {
    return this.swept.length + this.left.length + this.now.length;
  }

  /** Forget what was swept with other settings. */
  match(settings: Settings): void {
    const key = JSON.stringify([keyOf(settings), settings.connections]);
    if (key === this.key) return;
    this.stop();
    this.key = key;
    this.swept = [];
    this.left = [];
    this.error = null;
    this.state = "new";
  }

  async start(settings: Settings, digits: Digits, depths: readonly number[]): Promise<void> {
    this.match(settings);
    if (this.state === "training") return;
    if (this.state !== "stopped") {
      this.swept = [];
      this.left = depths.flatMap((depth) => settings.connections.map((name) => ({ name, depth })));
    }
    this.state = "training";
    const generation = ++this.generation;
    while (this.workers.length < Math.min(this.size, this.left.length)) this.workers.push(this.make());
    await Promise.all(this.workers.map((worker) => this.work(worker, settings, digits, generation)));
    if (generation === this.generation) this.state = "done";
  }

  /** What runs is broken off and begun again later; what has ended stays. */
  stop(): void {
    if (this.state !== "training") return;
    this.state = "stopped";
    this.generation++;
    this.left = [...this.now, ...this.left];
    this.now = [];
    for (const stop of this.stops.values()) stop();
    this.stops.clear();
  }

  close(): void {
    for (const worker of this.workers) worker.close();
  }

  private async work(worker: Worker, settings: Settings, digits: Digits, generation: number): Promise<void> {
    while (generation === this.generation) {
      const job = this.left.shift();
      if (!job) return;
      this.now = [...this.now, job];
      const last = await this.train(worker, job, settings, digits, generation);
      if (generation !== this.generation) return;
      this.stops.delete(job);
      this.now = this.now.filter((one) => one !== job);
      if (last) this.swept = [...this.swept, { ...job, last }];
    }
  }

  /** Return the last report; null of what was stopped or cannot be done. */
  private async train(
    worker: Worker,
    job: Job,
    settings: Settings,
    digits: Digits,
    generation: number,
  ): Promise<Report | null> {
    const steps = settings.trainSteps;
    let last: Report | null = null;
    try {
      await configure(worker, settings, job.name, job.depth, digits);
      if (generation !== this.generation) return null;
      // One report of the last fifth: a single batch would be too few.
      const reports = Math.max(1, Math.ceil(steps / 5));
      const { id, answer } = worker.ask({ type: "train", steps, every: reports }, "done", (progress) => {
        if (progress.step % reports === 0) {
          const { step, trained, heldOut } = progress;
          last = { step, trained, heldOut: heldOut! };
        }
      });
      this.stops.set(job, () => worker.cancel(id));
      return (await answer).cancelled ? null : last;
    } catch (error) {
      if (generation === this.generation) this.error = words(error);
      return null;
    }
  }
}
