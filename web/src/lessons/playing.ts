/** From a question to what its figure and the explorer should show. */

import { DEFAULTS, type Settings } from "../explorer/settings";
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
  return { ...rest, seed, ...(named.length > 0 ? { connections: named } : {}), tab: tabOf(first) };
}

/** What two figures may differ in and yet say the same of a connection or a cell. */
const NOT_ASKED: readonly (keyof Settings)[] = [
  "tab",
  "expert",
  "connections",
  "cells",
  "view",
  "seed",
  "chapter",
  "answers",
  "lesson",
];

/** What a figure at these settings would give away: all that is asked about them and not predicted yet. */
export function untold(asked: readonly Question[], chapter: Partial<Settings>, shown: Settings): Ask[] {
  const names = (Object.keys(shown) as (keyof Settings)[]).filter((name) => !NOT_ASKED.includes(name));
  return asked.flatMap(asksOf).filter((ask) => {
    const settings = settingsOf(chapter, ask.settings);
    return names.every((name) => settings[name] === shown[name]);
  });
}
