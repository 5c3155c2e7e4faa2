import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { axisOf, xAxisOf } from "../src/figures/axis";
import { indexOf } from "../src/figures/cells";
import { draw, missing, outline, valueAt } from "../src/figures/draw";
import { figureOf, type HeatFigure, type LineFigure, type PanelsFigure } from "../src/report/figures";
import { numbers, parse, unpack } from "../src/report/packed";

const told = JSON.parse(readFileSync(new URL("../golden/report.json", import.meta.url), "utf8"));
const value = (of: number | string | null): number =>
  of === null || of === "nan" ? Number.NaN : of === "inf" ? 1 / 0 : of === "-inf" ? -1 / 0 : Number(of);

const heat = async (name: string) => figureOf(await unpack(told[name])) as HeatFigure;
const lines = async () => figureOf(await unpack(told.lines)) as LineFigure;

describe("a heat map of a report", () => {
  test("gives back every cell: its logarithm, and what it holds beside numbers", async () => {
    const { heat: cells, sites, title } = await heat("heat");
    expect(title).toBe("The gradient");
    expect(sites).toEqual([0, 1, 2, 3, 4].map((i) => `layers.${i}`));
    expect(told.logs.length).toBe(7);
    told.logs.forEach((column: (number | string)[], j: number) => {
      column.forEach((log, i) => {
        const at = 7 * i + j;
        if (log === "nan") expect(cells.mean[at]).toBeNaN();
        else expect(cells.mean[at]).toBeCloseTo(value(log), 5);
        expect(cells.marks[at]).toBe(told.marks[j][i]);
      });
    });
    // What was not measured is neither a number nor a mark.
    expect([cells.mean[7 * 3 + 4], cells.marks[7 * 3 + 4]]).toEqual([Number.NaN, 0]);
    expect(cells.low).toBe(cells.mean);
  });

  test("has a column for each sample, which stands until the next", async () => {
    const { heat: cells } = await heat("heat");
    expect(Array.from(cells.columns)).toEqual([0, 20, 40, 60, 80, 100, 120, 140]);
    expect(cells.spans[3]).toEqual([60, 60]);
    expect(indexOf(cells.columns, 139)).toBe(6);
  });

  test("of merged samples knows the least and the greatest", async () => {
    const { heat: cells } = await heat("merged");
    for (const [i, held] of [cells.low, cells.high].entries()) {
      told.ends[i].forEach((column: (number | string)[], j: number) => {
        column.forEach((end, site) => {
          expect(10 ** held[2 * site + j]).toBeCloseTo(value(end), 5);
        });
      });
    }
    expect(cells.spans[0]).toEqual([0, 300]);
    expect(Array.from(cells.columns)).toEqual([0, 320, 640]);
    expect(cells.marks[2]).toBe(1); // one of the merged samples is zero
  });
});

describe("lines of a report", () => {
  test("give back their numbers exactly, with gaps and without", async () => {
    const { series, names } = await lines();
    expect(series.map((one) => [one.label, one.style, one.colour])).toEqual([
      ["measured", "measured", 0],
      ["loss", "predicted", 1],
      ["limit", "reference", "ref"],
    ]);
    series.forEach((one, i) => {
      expect([...(one.x as Float64Array)]).toEqual(told.series[i].x);
      expect([...(one.y as Float64Array)]).toEqual(told.series[i].y.map(value));
    });
    expect([...(series[0].lacking as Uint8Array)]).toEqual([0, 1, 0, 0]);
    expect(series[1].lacking).toBeUndefined();
    expect(names).toEqual(["</script><script>alert(1)</script>", "layers.1", "layers.2", "é"]);
  });

  test("say NaN where a number is none, and nothing where none was measured", async () => {
    const { series, y } = await lines();
    expect([0, 1, 2, 3].map((at) => valueAt(series[0], at))).toEqual(["1.00×10⁻⁶⁰", "–", "0.1", "NaN"]);
    const vertical = axisOf(y, series);
    const found = missing([series[0]], vertical).map(({ edge, count, first }) => [edge, count, first]);
    expect(found).toEqual([["nan", 1, 3]]);
    const frame = { left: 0, top: 0, right: 300, bottom: 100 };
    const drawn = draw(series[0], xAxisOf({ label: "block" }, 0, 3), vertical, frame);
    expect(drawn.line.match(/M/g)).toHaveLength(2); // broken at the gap
  });

  test("say of points that stand for more values how many these are", async () => {
    const { series, y } = await lines();
    const found = missing([series[1]], axisOf(y, series)).map(({ edge, count, first, last }) => [
      edge,
      count,
      first,
      last,
    ]);
    expect(found).toEqual([
      ["zero", 1, 1, 1],
      ["below", 5, 2, 3],
    ]);
  });

  test("have an interval where one is known, down to the edge where it ends in zero", async () => {
    const { areas, series, y } = await lines();
    expect(areas).toHaveLength(1);
    const frame = { left: 0, top: 0, right: 300, bottom: 100 };
    const path = outline(areas[0], xAxisOf({ label: "block" }, 0, 3), axisOf(y, series), frame);
    expect(path.split("L")).toHaveLength(4);
    expect(path).toContain("L200.0,100.0");
  });
});

describe("panels of a report", () => {
  test("are figures of lines, in which seeds lie behind their median", async () => {
    const { kind, shared, panels } = figureOf(await unpack(told.panels)) as PanelsFigure;
    expect([kind, shared, panels.map(({ title }) => title)]).toEqual(["panels", false, ["narrow", "wide"]]);
    const [narrow, wide] = panels;
    expect(narrow.fine.map(({ y }) => [...(y as Float64Array)])).toEqual([
      [4, 2, 1],
      [4, 3, 1],
      [4, 4, 1],
    ]);
    expect(narrow.series.map(({ y }) => [...(y as Float64Array)])).toEqual([[4, 3, 1]]);
    expect([...(wide.series[0].lacking as Uint8Array)]).toEqual([0, 1]);
    expect(wide.fine).toEqual([]);
    // One, ten and a hundred are evenly spaced.
    const places = [1, 10, 100].map((x) => xAxisOf(narrow.x, 1, 100).place(x) as number);
    expect(places[1] - places[0]).toBeCloseTo(places[2] - places[1], 9);
    expect(xAxisOf({ label: "step" }, 1, 100).place(10)).toBeCloseTo(9 / 99, 9);
  });
});

describe("a block", () => {
  test("has no letter that HTML could read", () => {
    for (const name of ["heat", "merged", "lines", "panels"]) expect(told[name]).toMatch(/^[A-Za-z0-9+/]+=*$/);
  });

  test("that is cut off is refused", async () => {
    const held = await unpack(told.heat);
    expect(() => parse(held.subarray(0, held.length - 1))).toThrow("end before they should");
    expect(numbers(parse(held), "no such")).toBeNull();
    await expect(unpack(told.heat.slice(0, -8))).rejects.toThrow();
  });
});
