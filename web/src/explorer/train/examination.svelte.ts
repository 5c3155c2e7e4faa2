/** What a trained network answers: lesions, path lengths and weights, asked once; what units look for; and lesions of one's own. */

import type { PathLengths } from "../../engine/paths";
import type { Evaluation, Response, WeightMatrix } from "../../engine/protocol";
import type { Run } from "./trainer.svelte";

type Lesions = Extract<Response, { type: "lesions" }>;

export class Examination {
  lesions = $state.raw<Lesions | null>(null);
  /** How many layers have been taken away by now. */
  lesioned = $state(0);
  /** Whether somebody ended it before it had come to the last layer. */
  stopped = $state(false);
  paths = $state.raw<PathLengths | null>(null);
  /** Whether paths have been asked for and answered; of what is no residual network there are none. */
  followed = $state(false);
  weights = $state.raw<readonly WeightMatrix[]>([]);
  error = $state<string | null>(null);

  private cancel: (() => void) | null = null;

  constructor(readonly run: Run) {
    void this.ask();
  }

  /** Take no more layers away: what was found so far is dropped. */
  stop(): void {
    this.stopped = true;
    this.cancel?.();
  }

  /** Begin again, from the first layer. */
  resume(): void {
    this.stopped = false;
    void this.takeAway();
  }

  /** The weights less those before the first step. */
  get changes(): WeightMatrix[] {
    return this.weights.map((matrix, place) => {
      const { values } = this.run.start[place];
      return { ...matrix, values: matrix.values.map((value, at) => value - values[at]) };
    });
  }

  /** The input that each unit of a layer, counted from 0, looks for; null with batch normalisation. */
  async preferred(layer: number): Promise<WeightMatrix | null> {
    return (await this.run.worker.ask({ type: "preferred", layer }, "preferred").answer).patterns;
  }

  private async ask(): Promise<void> {
    const { worker } = this.run;
    try {
      this.weights = (await worker.ask({ type: "weights" }, "weights").answer).matrices;
      this.paths = (await worker.ask({ type: "paths" }, "paths").answer).paths;
      this.followed = true;
    } catch (error) {
      this.error = error instanceof Error ? error.message : String(error);
      return;
    }
    await this.takeAway();
  }

  private async takeAway(): Promise<void> {
    if (this.stopped) return;
    this.lesioned = 0;
    const { worker } = this.run;
    const asked = worker.ask({ type: "lesions", counted: true }, "lesions", undefined, (done) => {
      this.lesioned = done;
    });
    this.cancel = () => worker.cancel(asked.id);
    try {
      this.lesions = await asked.answer;
    } catch (error) {
      if (!this.stopped) this.error = error instanceof Error ? error.message : String(error);
    } finally {
      this.cancel = null;
    }
  }
}

export const inOrder = (places: readonly number[]): boolean => places.every((layer, place) => layer === place);

/** What came of a lesion, with the lesion that it came of: the next one may be asked already. */
export interface Found extends Evaluation {
  readonly places: readonly number[];
  readonly out: ReadonlySet<number>;
}

/** The layers that are run, in order; what is taken out leaves its place, so that it can come back. */
export class Surgery {
  places = $state.raw<readonly number[]>([]);
  out = $state.raw<ReadonlySet<number>>(new Set());
  found = $state.raw<Found | null>(null);
  error = $state<string | null>(null);
  private asked = 0;

  constructor(private readonly run: Run) {
    this.restore();
  }

  get order(): number[] {
    return this.places.filter((layer) => !this.out.has(layer));
  }

  get whole(): boolean {
    return this.out.size === 0 && inOrder(this.places);
  }

  toggle(layer: number): void {
    const out = new Set(this.out);
    if (!out.delete(layer)) out.add(layer);
    this.out = out;
    void this.evaluate();
  }

  /** Two places of the order, counted from 0. */
  swap(a: number, b: number): void {
    const places = [...this.places];
    [places[a], places[b]] = [places[b], places[a]];
    this.places = places;
    void this.evaluate();
  }

  restore(): void {
    this.places = Array.from({ length: this.run.depth }, (_, layer) => layer);
    this.out = new Set();
    void this.evaluate();
  }

  private async evaluate(): Promise<void> {
    const asked = ++this.asked;
    const { places, out } = this;
    try {
      const { loss, accuracy } = await this.run.worker.ask({ type: "evaluate", order: this.order }, "evaluated").answer;
      if (asked === this.asked) this.found = { loss, accuracy, places, out };
    } catch (error) {
      if (asked === this.asked) this.error = error instanceof Error ? error.message : String(error);
    }
  }
}
