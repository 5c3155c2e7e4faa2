/** What the page has computed so far for what is chosen now. */

import { tick } from "svelte";
import type { ConnectionName } from "../engine/connections/index";
import { Engine } from "./engine";
import type { Computed } from "./picture";
import { type Job, Pool } from "./pool";
import { networkOptions, optimizerOptions, type Settings } from "./settings";

const MOST_WORKERS = 3;
const PATIENCE = 150; // milliseconds before the page says that it computes
/** Measures of the Performance API, from a change to its first line and to its last one on the screen. */
export const MEASURES = { first: "levada first line", last: "levada all lines" } as const;

function jobs(settings: Settings): Job[] {
  const optimizer = optimizerOptions(settings);
  return settings.connections.map((name) => ({
    network: networkOptions(settings, name),
    optimizer,
    batch: settings.rows,
  }));
}

export class Computing {
  /** By connection, in the order in which they were chosen; from before a change until its own answer comes. */
  all = $state.raw<readonly Computed[]>([]);
  errors = $state.raw<readonly string[]>([]);
  /** Whether somebody has waited so long that it should be said. */
  slow = $state(false);
  private readonly pool = new Pool(Math.min(MOST_WORKERS, navigator.hardwareConcurrency || 1), () => new Engine());
  private asked = "";
  private frame = 0;
  private timer = 0;

  /** Compute anew if these settings give another picture; at most once a frame. */
  update(settings: Settings): void {
    const wanted = jobs(settings);
    const key = JSON.stringify(wanted);
    if (key === this.asked) return;
    this.asked = key;
    const start = performance.now();
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.compute(settings.connections, wanted, start));
  }

  private compute(names: readonly ConnectionName[], wanted: readonly Job[], start: number): void {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.slow = true;
    }, PATIENCE);
    this.errors = [];
    const results = new Map(this.all.map((computed) => [computed.name, computed]));
    for (const name of results.keys()) if (!names.includes(name)) results.delete(name);
    let left = wanted.length;
    this.pool.compute(wanted, (place, outcome) => {
      const name = names[place];
      if ("error" in outcome) {
        results.delete(name);
        if (!this.errors.includes(outcome.error)) this.errors = [...this.errors, outcome.error];
      } else {
        results.set(name, { name, signals: outcome.signals });
      }
      this.all = names.flatMap((one) => results.get(one) ?? []);
      left--;
      if (left === wanted.length - 1) void drawn(MEASURES.first, start);
      if (left > 0) return;
      clearTimeout(this.timer);
      this.slow = false;
      void drawn(MEASURES.last, start);
    });
  }
}

/** Note how long it took from a change until what came of it is on the screen. */
async function drawn(name: string, start: number): Promise<void> {
  await tick();
  requestAnimationFrame(() => {
    // A message's turn comes when the frame has been painted.
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      performance.measure(name, { start, end: performance.now() });
      port1.close();
    };
    port2.postMessage(null);
  });
}
