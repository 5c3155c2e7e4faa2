/**
 * Networks computed by a few workers in turn. What is no longer wanted is not begun.
 *
 * Jobs of one connection are a lane. While questions come faster than answers, as from a slider that is moved, every lane
 * goes on: the one that has waited longest is begun first, with the newest question, and what was begun is answered.
 */

import type { NetworkOptions } from "../engine/network";
import type { OptimizerOptions } from "../engine/optimise";
import type { Request, Response } from "../engine/protocol";

export type Signals = Extract<Response, { type: "signals" }>;

export interface Job {
  readonly network: NetworkOptions;
  /** Left out where nobody looks at its first step, which costs more than the network's own passes. */
  readonly optimizer?: OptimizerOptions;
  readonly batch: number;
}

/** What came of a job, or why it cannot be done. */
export type Outcome = { readonly signals: Signals } | { readonly error: string };

interface Asked {
  readonly key: string;
  readonly lane: string;
  /** Which of the questions it belongs to. */
  readonly generation: number;
  readonly job: Job;
  readonly done: (outcome: Outcome) => void;
}

type Without<R, K extends PropertyKey> = R extends unknown ? Omit<R, K> : never;

/** What of an engine is needed here. */
export interface Asks {
  ask<Answer extends Response["type"]>(
    request: Without<Extract<Request, { type: "configure" | "run" }>, "id">,
    answer: Answer,
  ): { answer: Promise<Extract<Response, { type: Answer }>> };
}

const MOST_KEPT = 64;

export class Pool {
  private readonly idle: Asks[];
  private queue: Asked[] = [];
  private generation = 0;
  private readonly known = new Map<string, Outcome>();
  /** By lane, the newest question that was begun, and the newest that was answered. */
  private readonly begun = new Map<string, number>();
  private readonly answered = new Map<string, number>();

  constructor(size: number, make: () => Asks) {
    this.idle = Array.from({ length: size }, make);
  }

  /**
   * Compute these and begin nothing else. `done` is called for each of them unless a newer question is asked before it is
   * begun, or answered before it is done; for those that are known already at once.
   */
  compute(jobs: readonly Job[], done: (place: number, outcome: Outcome) => void): void {
    const generation = ++this.generation;
    this.queue = [];
    jobs.forEach((job, place) => {
      const [key, lane] = [JSON.stringify(job), job.network.connection.name];
      const asked: Asked = { key, lane, generation, job, done: (outcome) => done(place, outcome) };
      const known = this.known.get(key);
      if (known) {
        this.keep(key, known);
        this.begun.set(lane, generation);
        this.answer(asked, known);
      } else {
        this.queue.push(asked);
      }
    });
    this.start();
  }

  /**
   * Let each worker that is free compute these, until something is asked: its code is compiled by then, and its random
   * numbers are drawn. Nobody is told what comes of it.
   */
  warm(jobs: readonly Job[]): void {
    const { generation } = this;
    for (const engine of this.idle.splice(0)) void this.prepare(engine, jobs, generation);
  }

  private async prepare(engine: Asks, jobs: readonly Job[], generation: number): Promise<void> {
    for (const job of jobs) {
      if (generation !== this.generation) break;
      await ask(engine, job).catch(() => {}); // what cannot be computed is said when it is asked for
    }
    this.idle.push(engine);
    this.start();
  }

  private start(): void {
    while (this.idle.length > 0 && this.queue.length > 0) void this.run(this.idle.shift()!, this.next());
  }

  /** Of those that have waited equally long, the first. */
  private next(): Asked {
    const since = ({ lane }: Asked) => this.begun.get(lane) ?? 0;
    const next = this.queue.reduce((first, one) => (since(one) < since(first) ? one : first));
    this.queue = this.queue.filter((one) => one !== next);
    this.begun.set(next.lane, next.generation);
    return next;
  }

  private answer({ lane, generation, done }: Asked, outcome: Outcome): void {
    if (generation < (this.answered.get(lane) ?? 0)) return;
    this.answered.set(lane, generation);
    done(outcome);
  }

  private async run(engine: Asks, asked: Asked): Promise<void> {
    const { key, job } = asked;
    let outcome: Outcome;
    try {
      outcome = { signals: await ask(engine, job) };
    } catch (error) {
      outcome = { error: error instanceof Error ? error.message : String(error) };
    }
    this.keep(key, outcome);
    this.idle.unshift(engine); // the one whose code is compiled by now goes first
    this.answer(asked, outcome);
    this.start();
  }

  /** Newest last; the oldest goes where there are too many. */
  private keep(key: string, outcome: Outcome): void {
    this.known.delete(key);
    this.known.set(key, outcome);
    if (this.known.size > MOST_KEPT) this.known.delete(this.known.keys().next().value!);
  }
}

async function ask(engine: Asks, job: Job): Promise<Signals> {
  // Both are asked at once: their answers come in this order, so that what is refused first is what is said.
  const configured = engine.ask({ type: "configure", ...job }, "configured").answer;
  const [signals] = await Promise.all([engine.ask({ type: "run" }, "signals").answer, configured]);
  return signals;
}
