/** From a question to what its figure and the explorer should show. */

import type { Settings } from "../explorer/settings";
import { settingsOf, tabOf } from "./measure";
import type { Ask, Question } from "./types";

function connectionsOf(asks: readonly Ask[]): Settings["connections"] {
  const named = asks.flatMap((ask) => {
    if (!("connection" in ask)) return [];
    return "over" in ask && ask.over ? [ask.connection, ask.over] : [ask.connection];
  });
  return [...new Set(named)];
}

/** What the figure is set to when this has been computed: of several options, that of `place`. */
export function shownAfter(question: Question, place: number, chapter: Partial<Settings>): Partial<Settings> {
  const asks = question.kind === "choice" ? question.options.map(({ ask }) => ask) : [question.ask];
  const chosen = question.kind === "choice" ? asks[place] : asks[0];
  const part = { ...chosen.settings };
  const named = connectionsOf(asks);
  const before = chapter.connections ?? [];
  if (named.some((name) => !before.includes(name)))
    return { ...part, connections: [...new Set([...before, ...named])] };
  return part;
}

/** All that the explorer needs to show the same; what else the page keeps stays as it is. */
export function inExplorer(asks: readonly Ask[], chapter: Partial<Settings>): Partial<Settings> {
  const [first] = asks;
  const named = connectionsOf(asks);
  const { expert, chapter: number, answers, lesson, ...rest } = settingsOf(chapter, first.settings);
  return { ...rest, ...(named.length > 0 ? { connections: named } : {}), tab: tabOf(first) };
}
