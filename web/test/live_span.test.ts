import { describe, expect, it } from "vitest";
import { Gestures, wheelFactor } from "../src/figures/gestures";
import { length, pan, reveal, within, zoom } from "../src/figures/span";

const limits = { from: 0, to: 1000 };

describe("a stretch of an axis", () => {
  it("keeps the place about which it is zoomed", () => {
    const nearer = zoom({ from: 0, to: 1000 }, limits, 0.5, 250, 4);
    expect(nearer).toEqual({ from: 125, to: 625 });
    expect((250 - nearer.from) / length(nearer)).toBe(0.25);
  });

  it("never leaves its limits, and never becomes shorter than allowed or longer than all", () => {
    let span = { from: 300, to: 400 };
    for (let i = 0; i < 200; i++) {
      const factor = 0.4 + ((i * 37) % 100) / 50;
      span = zoom(span, limits, factor, (i * 91) % 1000, 4);
      span = pan(span, limits, ((i * 53) % 400) - 200);
      expect(span.from).toBeGreaterThanOrEqual(0);
      expect(span.to).toBeLessThanOrEqual(1000);
      expect(length(span)).toBeGreaterThanOrEqual(4);
      expect(Number.isInteger(span.from) && Number.isInteger(span.to)).toBe(true);
    }
    expect(zoom(span, limits, 1e6, 5, 4)).toEqual(limits);
    expect(zoom({ from: 0, to: 2 }, { from: 0, to: 2 }, 0.1, 1, 4)).toEqual({ from: 0, to: 2 });
  });

  it("stays at an end where it is moved over it", () => {
    expect(pan({ from: 900, to: 1000 }, limits, 50)).toEqual({ from: 900, to: 1000 });
    expect(pan({ from: 10, to: 20 }, limits, -0.2)).toEqual({ from: 9, to: 19 });
    expect(within({ from: -5, to: 5 }, limits)).toEqual({ from: 0, to: 10 });
  });

  it("moves as little as shows a place", () => {
    expect(reveal({ from: 10, to: 20 }, limits, 25)).toEqual({ from: 16, to: 26 });
    expect(reveal({ from: 10, to: 20 }, limits, 3)).toEqual({ from: 3, to: 13 });
    expect(reveal({ from: 10, to: 20 }, limits, 19)).toEqual({ from: 10, to: 20 });
  });
});

function recorded() {
  const said: string[] = [];
  const gestures = new Gestures({
    pan: (x, y) => said.push(`pan ${x} ${y}`),
    zoom: (factor, x, y) => said.push(`zoom ${factor} at ${x} ${y}`),
    choose: (x, y) => said.push(`choose ${x} ${y}`),
  });
  return { said, gestures };
}

describe("pointers", () => {
  it("choose where one trembles only, and drag where it moves", () => {
    const { said, gestures } = recorded();
    gestures.press({ id: 1, x: 10, y: 10 });
    gestures.move({ id: 1, x: 12, y: 11 });
    gestures.lift({ id: 1, x: 12, y: 11 });
    expect(said).toEqual(["choose 12 11"]);
    gestures.press({ id: 1, x: 10, y: 10 });
    gestures.move({ id: 1, x: 30, y: 10 });
    gestures.lift({ id: 1, x: 30, y: 10 });
    expect(said.slice(1)).toEqual(["pan 20 0"]);
    gestures.move({ id: 1, x: 90, y: 90 });
    expect(said).toHaveLength(2);
  });

  it("zoom where two of them part, about their middle, and choose nothing", () => {
    const { said, gestures } = recorded();
    gestures.press({ id: 1, x: 0, y: 0 });
    gestures.press({ id: 2, x: 100, y: 0 });
    gestures.move({ id: 2, x: 200, y: 0 });
    gestures.lift({ id: 1, x: 0, y: 0 });
    gestures.lift({ id: 2, x: 200, y: 0 });
    expect(said).toEqual(["pan 50 0", "zoom 0.5 at 100 0"]);
  });

  it("turn of a wheel: towards oneself shows more, whatever its unit, and never by much", () => {
    const turn = (deltaY: number, deltaMode = 0, ctrlKey = false) => wheelFactor({ deltaY, deltaMode, ctrlKey });
    expect(turn(100)).toBeGreaterThan(1);
    expect(turn(-100)).toBeCloseTo(1 / turn(100), 12);
    expect(turn(3, 1)).toBeCloseTo(turn(48), 12);
    expect(turn(1e9)).toBeLessThan(2.1);
    expect(turn(10, 0, true)).toBeGreaterThan(turn(10));
  });
});
