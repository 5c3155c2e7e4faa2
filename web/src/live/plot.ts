/** The options of the figure of losses: uPlot draws it, in the colours of the page. */

import type uPlot from "uplot";
import type { Span } from "../figures/span";
import { grouped } from "../page/number";
import type { Curve } from "./curves";
import { colour } from "./scheme.svelte";
import { logTicks, tickWords } from "./ticks";

/** Steps at which a finding stood. */
export interface Stretch {
  readonly from: number;
  readonly to: number;
}

export interface PlotOptions {
  readonly curves: readonly Curve[];
  readonly width: number;
  readonly height: number;
  readonly log: boolean;
  /** Of letters and their room, where the page's are larger: see `enlarged`. */
  readonly scale: number;
  readonly stretches: () => readonly Stretch[];
  /** The step that is marked, or null. */
  readonly step: () => number | null;
  readonly seen: () => Span;
  readonly onselect: (from: number, to: number) => void;
  readonly onhover: (step: number | null) => void;
}

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
/** Beside what is drawn, for letters of a small screen. */
export const GUTTER = { left: 58, right: 28 };

/** A whisker of room above and below what is drawn. */
function room(log: boolean) {
  return (_: uPlot, low: number | null, high: number | null): [number, number] => {
    if (low === null || high === null) return log ? [0.1, 1] : [0, 1];
    if (log) return [low / 1.3, high * 1.3];
    const size = high - low || Math.abs(high) / 2 || 1;
    return [low - 0.05 * size, high + 0.05 * size];
  };
}

/** A curve's line, and the two ends of its range, between which the band is filled. */
function seriesOf(one: Curve): uPlot.Series[] {
  const hidden = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
  const line = {
    label: one.label,
    stroke: () => colour(`c${one.colour}`),
    width: 2,
    dash: one.dashed ? [7, 5] : [],
    spanGaps: true,
    points: { show: one.x.length <= 60, size: 6, fill: () => colour(`c${one.colour}`) },
  };
  return [line, hidden, { ...hidden }];
}

export function plotOptions(given: PlotOptions): uPlot.Options {
  const { curves, log, scale } = given;
  const font = `${Math.round(13 * scale)}px ${FONT}`;
  const axis = { stroke: () => colour("soft"), font, ticks: { show: false } };
  return {
    width: given.width,
    height: given.height,
    padding: [8, GUTTER.right * scale, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false, dist: 5 } },
    scales: {
      x: { time: false, auto: false, range: () => [given.seen().from, given.seen().to] },
      y: { distr: log ? 3 : 1, range: room(log) },
    },
    axes: [
      {
        ...axis,
        size: 32 * scale,
        space: 64 * scale,
        label: "step",
        labelSize: 18 * scale,
        labelGap: 0,
        labelFont: font,
        grid: { show: false },
        values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? grouped(tick) : "")),
      },
      {
        ...axis,
        size: GUTTER.left * scale,
        grid: { stroke: () => colour("grid"), width: 1 },
        ...(log && { splits: (_: uPlot, __: number, low: number, high: number) => logTicks(low, high) }),
        filter: (_, ticks) => ticks, // uPlot leaves labels of a logarithmic axis out
        values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : tickWords(tick, log))),
      },
    ],
    series: [{}, ...curves.flatMap(seriesOf)],
    bands: curves.map((one, i) => ({ series: [3 * i + 3, 3 * i + 2], fill: () => `${colour(`c${one.colour}`)}33` })),
    hooks: {
      drawClear: [(plot) => shade(plot, given.stretches())],
      draw: [(plot) => mark(plot, given.step())],
      setSelect: [
        (plot) => {
          if (plot.select.width < 5) return;
          const [from, to] = [plot.select.left, plot.select.left + plot.select.width].map((at) =>
            plot.posToVal(at, "x"),
          );
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          given.onselect(from, to);
        },
      ],
      setCursor: [(plot) => given.onhover((plot.cursor.left ?? -1) < 0 ? null : plot.posToVal(plot.cursor.left!, "x"))],
    },
  };
}

/** Shade the steps at which a finding stood. */
function shade(plot: uPlot, stretches: readonly Stretch[]): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.fillStyle = colour("wash");
  for (const { from, to } of stretches) {
    const left = Math.max(plot.valToPos(from, "x", true), bbox.left);
    const right = Math.min(plot.valToPos(to, "x", true), bbox.left + bbox.width);
    if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
  }
  ctx.restore();
}

function mark(plot: uPlot, step: number | null): void {
  if (step === null) return;
  const { ctx, bbox } = plot;
  const left = plot.valToPos(step, "x", true);
  if (left < bbox.left || left > bbox.left + bbox.width) return;
  ctx.save();
  ctx.strokeStyle = colour("soft");
  ctx.setLineDash([4, 4]);
  ctx.beginPath();
  ctx.moveTo(left, bbox.top);
  ctx.lineTo(left, bbox.top + bbox.height);
  ctx.stroke();
  ctx.restore();
}
