/** How often is drawn, with a clock and frames that are turned by hand. */

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Pace } from "../src/explorer/pace";

let now = 0;
let frames: (() => void)[] = [];
let timers: { at: number; act: () => void }[] = [];
let painted: (() => void)[] = [];

beforeEach(() => {
  [now, frames, timers, painted] = [0, [], [], []];
  vi.stubGlobal("performance", { now: () => now });
  vi.stubGlobal("requestAnimationFrame", (act: () => void) => frames.push(act));
  vi.stubGlobal("cancelAnimationFrame", (id: number) => {
    if (id) frames[id - 1] = () => {};
  });
  vi.stubGlobal("setTimeout", (act: () => void, wait: number) => timers.push({ at: now + wait, act }));
  vi.stubGlobal("clearTimeout", (id: number) => {
    if (id) timers[id - 1] = { at: Number.POSITIVE_INFINITY, act: () => {} };
  });
  vi.stubGlobal(
    "MessageChannel",
    class {
      readonly port1: { onmessage: () => void; close(): void } = { onmessage: () => {}, close: () => {} };
      readonly port2 = { postMessage: () => painted.push(() => this.port1.onmessage()) };
    },
  );
});

afterEach(() => void vi.unstubAllGlobals());

/** Let a frame take so long to draw and paint. */
function frame(took: number): void {
  const acts = frames;
  frames = [];
  for (const act of acts) act();
  now += took;
  for (const act of painted.splice(0)) act();
}

function until(time: number): void {
  now = time;
  const due = timers.filter(({ at }) => at <= now);
  timers = timers.filter(({ at }) => at > now);
  for (const { act } of due) act();
}

test("what comes before a frame is drawn once, in it", () => {
  const draw = vi.fn();
  const pace = new Pace(draw);
  pace.soon();
  pace.soon();
  expect(draw).not.toHaveBeenCalled();
  frame(10);
  expect(draw).toHaveBeenCalledTimes(1);
});

test.each([
  ["a short frame is followed by a rest four times as long", 10, 40],
  ["a longer one by what nobody sees as a halt", 20, 60],
  ["a long one by as long as it took", 100, 100],
])("%s", (_, took, rest) => {
  const draw = vi.fn();
  const pace = new Pace(draw);
  pace.soon();
  frame(took);
  pace.soon();
  until(took + rest - 1);
  frame(0);
  expect(draw).toHaveBeenCalledTimes(1);
  until(took + rest);
  frame(0);
  expect(draw).toHaveBeenCalledTimes(2);
});

test("the last is drawn at once, and nothing after it", () => {
  const draw = vi.fn();
  const pace = new Pace(draw);
  pace.soon();
  frame(10);
  pace.soon();
  pace.now();
  expect(draw).toHaveBeenCalledTimes(2);
  until(100);
  frame(0);
  pace.soon();
  pace.now();
  frame(0);
  expect(draw).toHaveBeenCalledTimes(3);
});
