import { expect, test } from "vitest";
import { placed } from "../src/lessons/beside";

test("a figure that fits stays at the top, wherever the page is scrolled", () => {
  for (const wanted of [-500, 0, 8, 500]) expect(placed(wanted, 600, 800)).toBe(8);
});

test("a figure higher than the window shows its end to whom scrolls down, and its beginning to whom scrolls up", () => {
  const scroll = (top: number, by: number) => placed(top - by, 1000, 800);
  expect(scroll(8, 100)).toBe(-92);
  const end = scroll(-92, 1000);
  expect(end + 1000).toBe(800 - 8);
  expect(scroll(end, -50)).toBe(end + 50);
  expect(scroll(end, -1000)).toBe(8);
});
