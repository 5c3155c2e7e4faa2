/** Where a heat map gets its cells: a coarse view of all under what was asked for last, so that nothing flickers. */

import { untrack } from "svelte";
import { same } from "../figures/span";
import { ask, sentence } from "./api";
import { type Heat, type HeatAnswer, heatOf, key, type Question } from "./heat";
import { Kept, Latest } from "./latest";

const MOST_BYTES = 64e6;
const WAIT = 80; // milliseconds: a drag asks when it pauses

const kept = new Kept<Heat>(MOST_BYTES, (heat) => 13 * heat.mean.length + 1000);

export async function fetchHeat(asked: Question, signal: AbortSignal): Promise<Heat> {
  const { run, x, y } = asked;
  const answer = await ask<HeatAnswer>(
    `runs/${run}/heat`,
    {
      signal: asked.signal,
      from: x.from,
      to: x.to - 1,
      first: y.from,
      last: y.to - 1,
      columns: asked.columns,
      rows: asked.rows,
    },
    signal,
  );
  return heatOf(answer);
}

export class HeatSource {
  layers = $state.raw<readonly Heat[]>([]);
  problem = $state("");
  pending = $state(false);
  private of = "";
  private readonly latest = new Latest(fetchHeat, key, { wait: WAIT, kept });

  /** Show a stretch; `all` are the limits. */
  show(asked: Question, all: Pick<Question, "x" | "y">): void {
    untrack(() => {
      const of = `${asked.run} ${asked.signal}`;
      if (of !== this.of) {
        this.of = of;
        this.layers = [];
        this.problem = "";
      }
      const whole = same(asked.x, all.x) && same(asked.y, all.y);
      this.pending = true;
      this.latest.ask(
        asked,
        (heat) => this.receive(heat, whole),
        (error) => this.fail(error),
      );
      // A link into a stretch has no coarse view yet: it is asked for once.
      if (!whole && this.layers.length === 0) this.overview({ ...asked, ...all });
    });
  }

  stop(): void {
    this.latest.drop();
  }

  private receive(heat: Heat, whole: boolean): void {
    const base = whole ? heat : this.layers[0];
    this.layers = base && base !== heat ? [base, heat] : [heat];
    this.problem = "";
    this.pending = false;
  }

  private overview(asked: Question): void {
    const of = this.of;
    const found = kept.get(key(asked));
    const answer = found ? Promise.resolve(found) : fetchHeat(asked, new AbortController().signal);
    answer.then(
      (heat) => {
        kept.set(key(asked), heat);
        if (of === this.of) this.layers = [heat, ...this.layers.slice(-1)];
      },
      () => undefined, // what is asked for itself says what is wrong
    );
  }

  private fail(error: unknown): void {
    this.pending = false;
    this.problem = sentence(error, "The heat map");
  }
}
