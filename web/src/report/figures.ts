/** From the blocks of a report to what the figures are given. */

import type { Area, AxisSpec, Colour, Series, Shade } from "../figures/series";
import type { Heat } from "../live/heat";
import { type Block, logs, numbers, parse } from "./packed";

interface HeatHeader {
  readonly kind: "heat";
  readonly title: string;
  readonly sites: readonly string[];
}

interface PanelHeader {
  readonly title: string;
  readonly x: AxisSpec;
  readonly y: AxisSpec;
  /** Of the blocks, by x; none where x is a step. */
  readonly names: readonly string[];
  readonly series: readonly SeriesHeader[];
  readonly spans: readonly Shade[];
}

interface SeriesHeader {
  readonly label: string;
  readonly style: Series["style"] | "";
  readonly colour: Colour;
  /** Whether it is one of several of which another line is the median. */
  readonly thin?: boolean;
  readonly edges?: Series["edges"];
}

interface LineHeader extends PanelHeader {
  readonly kind: "lines";
}

interface PanelsHeader {
  readonly kind: "panels";
  readonly title: string;
  readonly shared: boolean;
  readonly panels: readonly PanelHeader[];
}

export interface HeatFigure extends Omit<HeatHeader, "planes"> {
  readonly heat: Heat;
}

/** A figure of lines, or a panel of one. */
export interface LineFigure {
  readonly kind: "lines";
  readonly title: string;
  readonly x: AxisSpec;
  readonly y: AxisSpec;
  readonly names: readonly string[];
  readonly series: readonly Series[];
  readonly areas: readonly Area[];
  readonly shades: readonly Shade[];
  /** Those of single seeds, drawn behind their median. */
  readonly fine: readonly Series[];
}

export interface PanelsFigure {
  readonly kind: "panels";
  readonly title: string;
  /** Whether all have the same axes. */
  readonly shared: boolean;
  readonly panels: readonly LineFigure[];
}

export function figureOf(held: Uint8Array): HeatFigure | LineFigure | PanelsFigure {
  const block = parse<HeatHeader | LineHeader | PanelsHeader>(held);
  const { header } = block;
  if (header.kind === "heat") return heat(block as Block<HeatHeader>);
  if (header.kind === "lines") return lines(block, header, "");
  const panels = header.panels.map((panel, i) => lines(block, panel, `${i}.`));
  return { kind: "panels", title: header.title, shared: header.shared, panels };
}

function plane(block: Block<unknown>, name: string): Float64Array {
  const found = numbers(block, name);
  if (!found) throw new Error(`The figure has no numbers “${name}”.`);
  return found;
}

function heat(block: Block<HeatHeader>): HeatFigure {
  const { kind, title, sites } = block.header;
  const [rows, first, last] = ["rows", "first", "last"].map((name) => plane(block, name));
  const count = first.length;
  // The last column stands as long as the one before, or a step.
  const end = Math.max(last[count - 1] + 1, count > 1 ? 2 * first[count - 1] - first[count - 2] : 0);
  const codes = (name: string) => block.planes.get(name) as Int16Array | undefined;
  const mean = logs(codes("mean")!);
  const [low, high] = ["low", "high"].map((name) => (codes(name) ? logs(codes(name)!) : mean));
  const marks = block.planes.get("marks") as Uint8Array;
  const columns = Float64Array.of(...first, end);
  const spans = Array.from(first, (step, i): [number, number] => [step, last[i]]);
  return { kind, title, sites, heat: { rows, columns, spans, mean, low, high, marks } };
}

function lines(block: Block<unknown>, header: PanelHeader, prefix: string): LineFigure {
  const series: Series[] = [];
  const fine: Series[] = [];
  const areas: Area[] = [];
  const labels = new Set<string>();
  header.series.forEach(({ label, style, colour, thin = false, edges }, i) => {
    const [x, y, low, high] = ["x", "y", "low", "high"].map((name) => numbers(block, `${prefix}${name}${i}`));
    const lacking = block.planes.get(`${prefix}lacking${i}`) as Uint8Array | undefined;
    if (x && low && high) areas.push({ label, colour, x, low, high });
    if (!x || !y || style === "") return;
    if (thin) {
      fine.push({ label, colour, style, x, y, ...(lacking && { lacking }) });
      return;
    }
    // Two lines of one name are told apart by a number, as a list of them needs it.
    let name = label;
    for (let n = 2; labels.has(`${name} ${style}`); n++) name = `${label} (${n})`;
    labels.add(`${name} ${style}`);
    series.push({ label: name, colour, style, x, y, ...(lacking && { lacking }), ...(edges && { edges }) });
  });
  const { title, x, y, names, spans } = header;
  return { kind: "lines", title, x, y, names, series, areas, shades: spans, fine };
}
