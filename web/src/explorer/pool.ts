/** Networks computed by a few workers in turn. What is no longer wanted is not begun, and its answer is dropped. */

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

  constructor(size: number, make: () => Asks) {
    this.idle = Array.from({ length: size }, make);
  }

  /** Compute these and nothing else; `done` is called once for each, those that are known already at once. */
  compute(jobs: readonly Job[], done: (place: number, outcome: Outcome) => void): void {
    const generation = ++this.generation;
    this.queue = [];
    jobs.forEach((job, place) => {
      const key = JSON.stringify(job);
      const known = this.known.get(key);
      if (known) {
        this.keep(key, known);
        done(place, known);
        return;
      }
      this.queue.push({
        key,
        job,
        done: (outcome) => {
          if (generation === this.generation) done(place, outcome);
        },
      });
    });
    this.start();
  }

  private start(): void {
    while (this.idle.length > 0 && this.queue.length > 0) void this.run(this.idle.shift()!, this.queue.shift()!);
  }

  private async run(engine: Asks, { key, job, done }: Asked): Promise<void> {
    let outcome: Outcome;
    try {
      // Both are asked at once: their answers come in this order, so that what is refused first is what is said.
      const configured = engine.ask({ type: "configure", ...job }, "configured").answer;
      const [signals] = await Promise.all([engine.ask({ type: "run" }, "signals").answer, configured]);
      outcome = { signals };
    } catch (error) {
      outcome = { error: error instanceof Error ? error.message : String(error) };
    }
    this.keep(key, outcome);
    this.idle.unshift(engine); // the one whose code is compiled by now goes first
    done(outcome);
    this.start();
  }

  /** Newest last; the oldest goes where there are too many. */
  private keep(key: string, outcome: Outcome): void {
    this.known.delete(key);
    this.known.set(key, outcome);
    if (this.known.size > MOST_KEPT) this.known.delete(this.known.keys().next().value!);
  }
}
