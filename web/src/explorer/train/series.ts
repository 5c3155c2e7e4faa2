/** What is known of trainings as series of figures. */

import type { ConnectionName } from "../../engine/connections/index";
import type { Colour, Series } from "../../figures/series";
import { SHORT_NAMES } from "../words";
import type { Part, Report, Reported, Swept } from "./plan";

type Measure = "loss" | "accuracy";
type Colours = ReadonlyMap<ConnectionName, Colour>;

const ofMeasure = (report: Report, part: Part, measure: Measure): number =>
  measure === "loss" ? report[part].loss : 100 * report[part].accuracy;

export function curves(runs: readonly Reported[], part: Part, measure: Measure, colours: Colours): Series[] {
  return runs
    .filter(({ reports }) => reports.length > 0)
    .map(({ name, reports }) => ({
      label: SHORT_NAMES[name],
      colour: colours.get(name) ?? "ref",
      style: "measured",
      x: reports.map(({ step }) => step),
      y: reports.map((report) => ofMeasure(report, part, measure)),
    }));
}

export function byDepth(swept: readonly Swept[], part: Part, measure: Measure, colours: Colours): Series[] {
  return [...colours].flatMap(([name, colour]): Series[] => {
    const own = swept.filter((one) => one.name === name).sort((a, b) => a.depth - b.depth);
    if (own.length === 0) return [];
    const y = own.map(({ last }) => ofMeasure(last, part, measure));
    return [{ label: SHORT_NAMES[name], colour, style: "measured", x: own.map(({ depth }) => depth), y }];
  });
}

/** What guessing gives: a line from the first x to the last. */
export function guessing(measure: Measure, from: number, to: number): Series {
  const y = measure === "loss" ? Math.log(10) : 10;
  return { label: "guessing", colour: "ref", style: "reference", x: [from, to], y: [y, y] };
}
