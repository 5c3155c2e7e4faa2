/** The lines through the chosen cell: several stretches of heat maps at once, shown when all have come. */

import { untrack } from "svelte";
import type { Series } from "../figures/series";
import { sentence } from "./api";
import { type Heat, key, type Question } from "./heat";
import { Kept, Latest } from "./latest";
import { fetchHeat } from "./source.svelte";

export interface Line {
  readonly asked: Question;
  draw(heat: Heat): Series;
}

const kept = new Kept<readonly Heat[]>(100);

export class LineSource {
  series = $state.raw<readonly Series[]>([]);
  problem = $state("");
  private readonly latest = new Latest(
    (asked: readonly Question[], signal) => Promise.all(asked.map((one) => fetchHeat(one, signal))),
    (asked: readonly Question[]) => asked.map(key).join("|"),
    { wait: 80, kept },
  );

  show(lines: readonly Line[]): void {
    untrack(() => {
      if (lines.length === 0) {
        this.latest.drop();
        this.series = [];
        return;
      }
      this.latest.ask(
        lines.map((line) => line.asked),
        (heats) => {
          this.series = heats.map((heat, i) => lines[i].draw(heat)).filter(({ x }) => x.length > 0);
          this.problem = "";
        },
        (error) => {
          this.problem = sentence(error, "The lines");
        },
      );
    });
  }

  stop(): void {
    this.latest.drop();
  }
}
