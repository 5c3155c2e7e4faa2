/** One question to the server: asked again when it changes, the newest one alone; what was told stays until then. */

import { untrack } from "svelte";
import { ask, sentence } from "./api";

interface Question {
  readonly path: string;
  readonly asked: Readonly<Record<string, number | null>>;
}

export class Answer<Told> {
  told = $state.raw<Told | null>(null);
  /** Why there is no answer; empty where the page says it once for all. */
  problem = $state("");

  /**
   * To be made where effects are: in a component.
   *
   * `question` reads what the answer follows from, `what` begins the sentence of a failure, and `pause` is the time, in
   * milliseconds, without another question before one is asked; the first one is asked at once.
   */
  constructor(question: (told: Told | null) => Question, what: string, pause: number) {
    $effect(() => {
      const { path, asked } = question(untrack(() => this.told));
      const control = new AbortController();
      const timer = setTimeout(
        () =>
          ask<Told>(path, asked, control.signal).then(
            (told) => {
              this.told = told;
              this.problem = "";
            },
            (error) => {
              if (!control.signal.aborted) this.problem = sentence(error, what);
            },
          ),
        untrack(() => this.told) ? pause : 0,
      );
      return () => {
        clearTimeout(timer);
        control.abort();
      };
    });
  }
}
