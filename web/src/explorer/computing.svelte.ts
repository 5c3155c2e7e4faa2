/** What the page has computed so far for what is chosen now. */

import { tick, untrack } from "svelte";
import type { ConnectionName } from "../engine/connections/index";
import { Engine } from "./engine";
import { Pace } from "./pace";
import type { Computed } from "./picture";
import { type Job, Pool } from "./pool";
import { cost, networkOptions, optimizerOptions, type Settings } from "./settings";

const MOST_WORKERS = 3;
const PATIENCE = 150; // milliseconds before the page says that it computes
const PREPARED = 200; // layers
const MOST_PREPARED = 2 ** 24; // of `cost`: what would take seconds is not computed before somebody asks
const REST = 100; // milliseconds in which the page does what else there is to do at first
/** Of the Performance API: from a change to the frame that has every line of the new one. */
export const MEASURE = "levada all lines";

function jobs(settings: Settings): Job[] {
  const optimizer = settings.view === "update" ? { optimizer: optimizerOptions(settings) } : {};
  return settings.connections.map((name) => ({
    network: networkOptions(settings, name),
    ...optimizer,
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
  private readonly results = new Map<ConnectionName, Computed>();
  /** In the order in which they were chosen last. */
  private names: readonly ConnectionName[] = [];
  private readonly refused = new Set<string>();
  private readonly pace = new Pace(() => {
    this.errors = [...this.refused];
    this.all = this.names.flatMap((one) => this.results.get(one) ?? []);
  });
  private asked = "";
  private question = 0;
  private timer = 0;

  /** Compute anew if these settings give another picture. */
  update(settings: Settings): void {
    const wanted = jobs(settings);
    const key = JSON.stringify(wanted);
    if (key === this.asked) return;
    this.asked = key;
    const start = performance.now();
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.slow = true;
    }, PATIENCE);
    untrack(() => this.compute(settings, wanted, start));
  }

  /** Once, after the first picture: what the first change will ask for is likely to be as deep as this at most. */
  private prepare(settings: Settings): void {
    if (this.question > 1) return;
    const question = this.question;
    const wanted = jobs({ ...settings, depth: Math.max(settings.depth, PREPARED) });
    if (wanted.reduce((sum, { network }) => sum + cost(network), 0) > MOST_PREPARED) return;
    setTimeout(() => {
      if (question === this.question) this.pool.warm(wanted);
    }, REST);
  }

  private compute(settings: Settings, wanted: readonly Job[], start: number): void {
    const names = settings.connections;
    this.names = names;
    for (const name of this.results.keys()) if (!names.includes(name)) this.results.delete(name);
    this.refused.clear();
    const question = ++this.question;
    let left = wanted.length;
    // The longest first: the last to end is then not one that all others have waited for.
    const order = wanted.map((_, place) => place).sort((a, b) => cost(wanted[b].network) - cost(wanted[a].network));
    this.pool.compute(
      order.map((place) => wanted[place]),
      (at, outcome) => {
        const name = names[order[at]];
        const current = question === this.question; // else it is shown until the newer one comes
        if (!this.names.includes(name)) return;
        if (!("error" in outcome)) {
          this.results.set(name, { name, signals: outcome.signals });
        } else if (current) {
          this.results.delete(name);
          this.refused.add(outcome.error);
        }
        if (current) left--;
        if (left > 0 || !current) return this.pace.soon();
        this.pace.now();
        clearTimeout(this.timer);
        this.slow = false;
        void drawn(start).then(() => this.prepare(settings));
      },
    );
  }
}

/** Note how long it took from a change until all that came of it is on the screen. */
async function drawn(start: number): Promise<void> {
  await tick();
  await new Promise(requestAnimationFrame);
  await new Promise<void>((resolve) => {
    // A message's turn comes when the frame has been painted.
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      performance.measure(MEASURE, { start, end: performance.now() });
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
