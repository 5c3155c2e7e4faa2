/** One run's summary and curves, asked for again when it has grown, not more often than the page can show. */

import type { Span } from "../figures/span";
import { ApiError, ask, type Drawings, type Summary, sentence } from "./api";
import type { Losses } from "./curves";
import { Kept, Latest } from "./latest";

const PAUSE = 1_500; // milliseconds between two looks at a run that grows

export class RunData {
  summary = $state.raw<Summary | null>(null);
  problem = $state("");
  private last = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private asked = 0;

  constructor(readonly id: string) {}

  /** Look again, soon. */
  refresh(): void {
    if (this.timer !== undefined) return;
    const wait = Math.max(0, this.last + PAUSE - Date.now());
    this.timer = setTimeout(() => {
      this.timer = undefined;
      this.last = Date.now();
      this.load();
    }, wait);
  }

  stop(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.asked++;
  }

  private async load(): Promise<void> {
    const mine = ++this.asked;
    try {
      const summary = await ask<Summary>(`runs/${this.id}`);
      if (mine !== this.asked) return;
      this.summary = summary;
      this.problem = "";
    } catch (error) {
      if (mine !== this.asked) return;
      const told = error instanceof ApiError ? error.message : "The run could not be read.";
      this.problem = this.summary ? sentence(error, "The run") : told;
    }
  }
}

interface Wanted {
  readonly run: string;
  readonly x: Span;
  readonly bins: number;
  readonly version: number;
}

const kept = new Kept<Losses>(200);

async function put({ run, x, bins }: Wanted, signal: AbortSignal): Promise<Losses> {
  const asked = { from: x.from, to: x.to - 1, bins };
  return ask<Losses>(`runs/${run}/loss`, asked, signal);
}

export class LossSource {
  losses = $state.raw<Losses | null>(null);
  problem = $state("");
  private readonly latest = new Latest(
    put,
    ({ run, x, bins, version }: Wanted) => `${run} ${x.from} ${x.to} ${bins} ${version}`,
    { wait: 80, kept },
  );

  show(wanted: Wanted): void {
    this.latest.ask(
      wanted,
      (losses) => {
        this.losses = losses;
        this.problem = "";
      },
      (error) => {
        this.problem = sentence(error, "The losses");
      },
    );
  }

  stop(): void {
    this.latest.drop();
  }
}

interface Drawn {
  readonly run: string;
  readonly version: number;
}

/** The figures of a check or a study. */
export class DrawnSource {
  told = $state.raw<Drawings | null>(null);
  problem = $state("");
  private of = "";
  private readonly latest = new Latest(
    ({ run }: Drawn, signal) => ask<Drawings>(`runs/${run}/drawings`, {}, signal),
    ({ run, version }: Drawn) => `${run} ${version}`,
    { wait: 0, kept: new Kept<Drawings>(2) },
  );

  /** Show those of a run, or none. */
  show(wanted: Drawn | null): void {
    if ((wanted?.run ?? "") !== this.of) {
      this.told = null;
      this.problem = "";
      this.of = wanted?.run ?? "";
      this.latest.drop();
    }
    if (!wanted) return;
    this.latest.ask(
      wanted,
      (told) => {
        this.told = told;
        this.problem = "";
      },
      (error) => {
        this.problem = sentence(error, "The figures");
      },
    );
  }

  stop(): void {
    this.latest.drop();
  }
}
