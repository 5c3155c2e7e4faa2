/** From a question to what its figure and the explorer should show. */

import { DEFAULTS, networkOptions, type Settings } from "../explorer/settings";
import { memoryOptions } from "../explorer/time/remembering.svelte";
import { trainedNetwork } from "../explorer/train/plan";
import { asksOf } from "./judge";
import { settingsOf, tabOf } from "./measure";
import type { Ask, Question } from "./types";

function connectionsOf(asks: readonly Ask[]): Settings["connections"] {
  const named = asks.flatMap((ask) => {
    if (!("connection" in ask)) return [];
    return "over" in ask && ask.over ? [ask.connection, ask.over] : [ask.connection];
  });
  return [...new Set(named)];
}

/**
 * What the figure is set to when this has been computed: of several options, that of `place`.
 *
 * @param seed of the draw that was in the middle.
 */
export function shownAfter(
  question: Question,
  place: number,
  chapter: Partial<Settings>,
  seed = DEFAULTS.seed,
): Partial<Settings> {
  const asks = asksOf(question);
  const chosen = question.kind === "choice" ? asks[place] : asks[0];
  const part = { ...chosen.settings, ...(seed === DEFAULTS.seed ? {} : { seed }) };
  const named = connectionsOf(asks);
  const before = chapter.connections ?? [];
  if (named.some((name) => !before.includes(name)))
    return { ...part, connections: [...new Set([...before, ...named])] };
  return part;
}

/** All that the explorer needs to show the same; what else the page keeps stays as it is. */
export function inExplorer(asks: readonly Ask[], chapter: Partial<Settings>, seed = DEFAULTS.seed): Partial<Settings> {
  const [first] = asks;
  const named = connectionsOf(asks);
  const { expert, chapter: number, answers, lesson, ...rest } = settingsOf(chapter, first.settings);
  const tab = tabOf(first);
  return { ...rest, seed, ...(named.length > 0 ? { connections: named } : {}), ...(tab ? { tab } : {}) };
}

/** What the engine is asked for, whatever the random numbers; null for what no figure draws. */
function jobOf(ask: Ask, chosen: Settings): unknown {
  const settings: Settings = { ...chosen, seed: DEFAULTS.seed };
  switch (ask.quantity) {
    case "slope":
      return [settings.activation, settings.gain, settings.depth];
    case "reach":
      return null;
    case "horizon":
      return memoryOptions(settings, ask.cell);
    case "gain":
    case "rows":
    case "columns":
      return [settings.depth, settings.streams, settings.iterations, settings.spread];
    case "loss":
    case "lesion":
    case "length":
      return [trainedNetwork(settings, ask.connection, settings.trainDepth), settings.trainLr, settings.trainSteps];
    case "kept":
    case "rate":
    case "carried":
      return [networkOptions(settings, ask.connection), settings.rows];
  }
}

/**
 * What a figure at these settings would give away: all that is asked about them and not predicted yet.
 *
 * Compared is what the engine would compute: the bias of a gate says nothing of a recurrent cell, whose line would give
 * its answer away all the same.
 */
export function untold(asked: readonly Question[], chapter: Partial<Settings>, shown: Settings): Ask[] {
  return asked.flatMap(asksOf).filter((ask) => {
    const job = jobOf(ask, settingsOf(chapter, ask.settings));
    return job !== null && JSON.stringify(job) === JSON.stringify(jobOf(ask, shown));
  });
}
