/** Paths of a figure of lines: pure functions from series and axes to what stands in an SVG path. */

import { line } from "d3-shape";
import { counted, shortExp, short as shortly } from "../page/number";
import type { Axis } from "./axis";
import type { Area, Colour, Edge, Series } from "./series";

/** The plotting area, in pixels. */
export interface Frame {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

export interface Drawn {
  readonly series: Series;
  /** The line; it has gaps where values have no place. */
  readonly line: string;
  /** Marks on the line, in a shape of the colour's own. */
  readonly marks: string;
  /** Marks at the edges, for what has no place. */
  readonly edges: string;
}

/** Of values without a place: how many, and from which x to which. Those of a line that yields can lie beyond the ends. */
export interface Missing {
  readonly series: Series;
  readonly edge: Edge | "over" | "under";
  readonly count: number;
  readonly first: number;
  readonly last: number;
}

const FEW = 60; // so many points get a mark each
const MARKS = 9; // of longer lines, about so many
const EDGE_ROOM = 7; // pixels between two marks at an edge

type Point = [number, number];

export const across = (frame: Frame, at: number): number => frame.left + at * (frame.right - frame.left);
export const upward = (frame: Frame, at: number): number => frame.bottom - at * (frame.bottom - frame.top);

export function draw(series: Series, x: Axis, y: Axis, frame: Frame): Drawn {
  const points: Point[] = [];
  const edges: [number, Edge][] = [];
  for (let at = 0; at < series.x.length; at++) {
    const place = y.place(series.y[at], series.logs);
    const left = across(frame, x.place(series.x[at]) as number);
    points.push([left, typeof place === "number" ? upward(frame, place) : Number.NaN]);
    if (typeof place !== "number" && !series.lacking?.[at]) edges.push([left, place]);
  }
  const path = line()
    .defined(([, top]) => !Number.isNaN(top))
    .digits(1);
  return {
    series,
    line: path(points) ?? "",
    marks: series.style === "measured" ? marks(points, series.colour) : "",
    edges: edgeMarks(edges, frame),
  };
}

function marks(points: readonly Point[], colour: Colour): string {
  const every = points.length <= FEW ? 1 : Math.ceil(points.length / MARKS);
  // Lines that lie on each other show their marks side by side.
  const start = every === 1 || colour === "ref" ? 0 : Math.floor(((colour % 7) * every) / 7);
  let path = "";
  for (let at = start; at < points.length; at += every) {
    const [x, y] = points[at];
    if (!Number.isNaN(y)) path += shape(colour, x, y, points.length <= FEW ? 3 : 4);
  }
  return path;
}

/** The outline of an interval; what has no place on the axis ends at its edge. */
export function outline({ x, low, high }: Area, horizontal: Axis, vertical: Axis, frame: Frame): string {
  const [upper, lower]: [string[], string[]] = [[], []];
  for (let at = 0; at < x.length; at++) {
    if (Number.isNaN(low[at]) || Number.isNaN(high[at])) continue;
    const left = across(frame, horizontal.place(x[at]) as number).toFixed(1);
    for (const [value, points] of [[high[at], upper] as const, [low[at], lower] as const]) {
      const place = vertical.place(value);
      const top = typeof place === "number" ? upward(frame, place) : place === "above" ? frame.top : frame.bottom;
      points.push(`${left},${top.toFixed(1)}`);
    }
  }
  return upper.length > 0 ? `M${[...upper, ...lower.reverse()].join("L")}Z` : "";
}

/** The shape of a colour's marks; that of a colour which comes again is another. */
const form = (colour: Colour): number => (colour === "ref" ? 0 : (colour + 3 * Math.floor(colour / 7)) % 7);

/** A circle, a triangle, a square, a diamond, ...: colours differ by shape too. */
export function shape(colour: Colour, x: number, y: number, size: number): string {
  const polygon = (...corners: Point[]) =>
    `M${corners.map(([right, down]) => `${(x + right * size).toFixed(1)},${(y + down * size).toFixed(1)}`).join("L")}Z`;
  switch (form(colour)) {
    case 1:
      return polygon([0, -1.3], [1.2, 0.9], [-1.2, 0.9]);
    case 2:
      return polygon([-1, -1], [1, -1], [1, 1], [-1, 1]);
    case 3:
      return polygon([0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]);
    case 4:
      return polygon([0, 1.3], [1.2, -0.9], [-1.2, -0.9]);
    case 5:
      return polygon([-1.2, -1.2], [0, -0.4], [1.2, -1.2], [0.4, 0], [1.2, 1.2], [0, 0.4], [-1.2, 1.2], [-0.4, 0]);
    case 6:
      return polygon([-1.4, -0.6], [1.4, -0.6], [1.4, 0.6], [-1.4, 0.6]);
    default:
      return `M${(x - size).toFixed(1)},${y.toFixed(1)}a${size},${size} 0 1 0 ${2 * size},0a${size},${size} 0 1 0 ${-2 * size},0Z`;
  }
}

function edgeMarks(edges: readonly [number, Edge][], { top, bottom }: Frame): string {
  let path = "";
  let before = Number.NEGATIVE_INFINITY;
  for (const [x, edge] of edges) {
    if (x - before < EDGE_ROOM) continue;
    before = x;
    if (edge === "nan") path += `M${x - 3.5},${top - 3.5}l7,7m0,-7l-7,7`;
    else if (edge === "above") path += `M${x - 3.5},${top + 3}l3.5,-6l3.5,6Z`;
    else path += `M${x - 3.5},${bottom - 3}l3.5,6l3.5,-6Z`;
  }
  return path;
}

/** Values without a place on an axis, by series and kind. */
export function missing(all: readonly Series[], y: Axis): Missing[] {
  const found: Missing[] = [];
  for (const series of all) {
    const kinds = new Map<Missing["edge"], { count: number; first: number; last: number }>();
    for (let at = 0; at < series.y.length; at++) {
      const place = y.place(series.y[at], series.logs);
      const edge = typeof place === "number" ? (series.yields ? beyond(place) : null) : place;
      if (edge === null || series.lacking?.[at]) continue;
      const kind = kinds.get(edge) ?? { count: 0, first: series.x[at], last: series.x[at] };
      kinds.set(edge, { ...kind, count: kind.count + 1, last: series.x[at] });
    }
    for (const [edge, [count, first, last]] of Object.entries(series.edges ?? {})) {
      kinds.set(edge as Edge, { count, first, last });
    }
    for (const [edge, kind] of kinds) found.push({ series, edge, ...kind });
  }
  return found;
}

const ROUNDING = 0.01; // of an axis whose ends are whole powers of ten, to which they may be moved inwards

function beyond(place: number): "over" | "under" | null {
  if (place > 1 + ROUNDING) return "over";
  return place < -ROUNDING ? "under" : null;
}

const EDGE_WORDS: Record<Missing["edge"], (count: number) => string> = {
  zero: (count) => `${is(count)} exactly zero, marked at the lower edge`,
  below: (count) => `${is(count)} below what the axis can show, marked at the lower edge`,
  above: (count) => `${is(count)} infinite, marked at the upper edge`,
  nan: (count) => `${is(count)} not a number, marked at the upper edge`,
  over: (count) => `${count === 1 ? "lies" : "lie"} above the axis, which keeps to what was measured`,
  under: (count) => `${count === 1 ? "lies" : "lie"} below the axis, which keeps to what was measured`,
};

const is = (count: number) => (count === 1 ? "is" : "are");

/** What is missing in words. */
export function missingWords({ series, edge, count, first, last }: Missing, named: (x: number) => string): string {
  const where = count === 1 ? named(first) : `${named(first)} to ${named(last)}`;
  return `${series.label}: ${counted(count, "value")} (${where}) ${EDGE_WORDS[edge](count)}.`;
}

/** The value of a series at one of its places, as text. */
export function valueAt({ y, logs, lacking }: Series, at: number, digits = 3): string {
  if (at < 0 || lacking?.[at]) return "–";
  return logs ? shortExp(y[at], digits) : shortly(y[at], digits);
}
