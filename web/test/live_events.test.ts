import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Events, type Shown, type Source } from "../src/live/events";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

class Fake implements Source {
  closed = false;
  private readonly listeners = new Map<string, (event: { data?: unknown }) => void>();

  addEventListener(type: string, listener: (event: { data?: unknown }) => void): void {
    this.listeners.set(type, listener);
  }

  say(type: string, data?: unknown): void {
    this.listeners.get(type)?.({ data });
  }

  close(): void {
    this.closed = true;
  }
}

class Page implements Shown {
  hidden = false;
  readonly listeners = new Set<() => void>();

  addEventListener(_: string, listener: () => void): void {
    this.listeners.add(listener);
  }

  removeEventListener(_: string, listener: () => void): void {
    this.listeners.delete(listener);
  }

  hide(hidden: boolean): void {
    this.hidden = hidden;
    for (const listener of this.listeners) listener();
  }
}

function listening(page = new Page()) {
  const sources: Fake[] = [];
  const said: string[] = [];
  const events = new Events(
    () => {
      sources.push(new Fake());
      return sources.at(-1)!;
    },
    ["grew", "heartbeat"],
    {
      connected: () => said.push("ask"),
      state: (state) => said.push(state),
      event: (type, data) => said.push(`${type} ${JSON.stringify(data)}`),
    },
    page,
  );
  events.connect();
  return { sources, said, events };
}

describe("the connection", () => {
  it("asks for what was missed each time it is made, and hears events", () => {
    const { sources, said } = listening();
    sources[0].say("open");
    sources[0].say("grew", '{"id":"a"}');
    sources[0].say("grew", "not JSON");
    expect(said).toEqual(["connected", "ask", 'grew {"id":"a"}']);
  });

  it("is tried again after an error, later each time, and again soon once it held", async () => {
    const { sources, said } = listening();
    sources[0].say("open");
    sources[0].say("error");
    expect([sources[0].closed, said.at(-1)]).toEqual([true, "lost"]);
    for (const [pause, count] of [
      [1000, 2],
      [2000, 3],
      [4000, 4],
      [8000, 5],
      [10_000, 6],
      [10_000, 7],
    ]) {
      await vi.advanceTimersByTimeAsync(pause - 1);
      expect(sources).toHaveLength(count - 1);
      await vi.advanceTimersByTimeAsync(1);
      expect(sources).toHaveLength(count);
      sources.at(-1)!.say("error");
    }
    await vi.advanceTimersByTimeAsync(10_000);
    sources.at(-1)!.say("open");
    sources.at(-1)!.say("error");
    await vi.advanceTimersByTimeAsync(1000);
    expect(sources).toHaveLength(9);
  });

  it("is said to be lost when even heartbeats stop", async () => {
    const { sources, said } = listening();
    sources[0].say("open");
    for (let i = 0; i < 5; i++) {
      await vi.advanceTimersByTimeAsync(30_000);
      sources[0].say("heartbeat", "{}");
    }
    expect(said.at(-1)).toBe("heartbeat {}");
    await vi.advanceTimersByTimeAsync(40_000);
    expect([said.at(-1), sources[0].closed]).toEqual(["lost", true]);
  });

  it("hears nothing of a source that was given up, and nothing once it is closed", async () => {
    const { sources, said, events } = listening();
    sources[0].say("error");
    sources[0].say("grew", "{}");
    expect(said).toEqual(["lost"]);
    events.close();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(sources).toHaveLength(1);
  });

  it("is given up while the page is hidden, and is made and asks for what was missed when it is shown", async () => {
    const page = new Page();
    const { sources, said, events } = listening(page);
    sources[0].say("open");
    page.hide(true);
    expect(sources[0].closed).toBe(true);
    sources[0].say("error");
    await vi.advanceTimersByTimeAsync(600_000);
    expect([sources.length, said]).toEqual([1, ["connected", "ask"]]);
    page.hide(false);
    sources[1].say("open");
    expect([sources.length, said.slice(2)]).toEqual([2, ["connecting", "connected", "ask"]]);
    events.close();
    page.hide(true);
    page.hide(false);
    expect([sources.length, page.listeners.size]).toEqual([2, 0]);
  });

  it("waits for a page that is opened behind others, and is not tried again once the page is hidden", async () => {
    const page = new Page();
    page.hidden = true;
    const { sources } = listening(page);
    expect(sources).toHaveLength(0);
    page.hide(false);
    expect(sources).toHaveLength(1);
    sources[0].say("error");
    page.hide(true);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(sources).toHaveLength(1);
  });
});
