import { describe, expect, it } from "vitest";
import type { Source } from "../src/live/events";
import { Hub, type Port, type Said, type Told } from "../src/live/hub";
import { type Shared, SharedSource } from "../src/live/shared";

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

class Window implements Port {
  onmessage: Port["onmessage"] = null;
  readonly told: string[] = [];

  postMessage({ type, data }: Told): void {
    this.told.push(data === undefined ? type : `${type} ${data}`);
  }

  say(data: Said): void {
    this.onmessage?.({ data });
  }
}

function windows(count: number) {
  const sources: Fake[] = [];
  const hub = new Hub(() => {
    sources.push(new Fake());
    return sources.at(-1)!;
  });
  const made = Array.from({ length: count }, () => new Window());
  for (const one of made) hub.add(one);
  return { sources, made };
}

const listen = { listen: "api/1/events" };

describe("one stream for all windows", () => {
  it("is opened once, and tells each all that comes from then on", () => {
    const { sources, made } = windows(8);
    for (const one of made.slice(0, 7)) one.say(listen);
    sources[0].say("open");
    sources[0].say("grew", "{}");
    made[7].say(listen);
    sources[0].say("heartbeat", "{}");
    expect(sources).toHaveLength(1);
    expect(made[0].told).toEqual(["open", "grew {}", "heartbeat {}"]);
    expect(made[7].told).toEqual(["open", "heartbeat {}"]);
  });

  it("is closed with the last window that listens, and opened anew for the next", () => {
    const { sources, made } = windows(2);
    for (const one of made) one.say(listen);
    made[0].say({ leave: true });
    sources[0].say("open");
    expect([sources[0].closed, made[0].told, made[1].told]).toEqual([false, [], ["open"]]);
    made[1].say({ leave: true });
    expect(sources[0].closed).toBe(true);
    made[0].say(listen);
    expect(sources).toHaveLength(2);
    expect(made[0].told).toEqual([]); // not open yet
    sources[0].say("grew", "{}"); // of the one that was closed
    expect(made[0].told).toEqual([]);
  });

  it("that breaks is told to all, and opened once when they come again", () => {
    const { sources, made } = windows(3);
    for (const one of made) one.say(listen);
    sources[0].say("error");
    expect(made.map(({ told }) => told)).toEqual([["error"], ["error"], ["error"]]);
    expect(sources[0].closed).toBe(true);
    for (const one of made) one.say(listen);
    sources[1].say("open");
    expect(sources).toHaveLength(2);
    expect(made.map(({ told }) => told.at(-1))).toEqual(["open", "open", "open"]);
  });
});

describe("a window's end of it", () => {
  it("hears what the worker says, and that there is none", () => {
    const said: Said[] = [];
    const port: Shared["port"] = { onmessage: null, postMessage: (one) => said.push(one), close: () => undefined };
    const worker: Shared = { port, onerror: null };
    const source = new SharedSource(worker, "api/1/events");
    const heard: unknown[] = [];
    source.addEventListener("grew", ({ data }) => heard.push(data));
    source.addEventListener("error", () => heard.push("error"));
    port.onmessage?.({ data: { type: "grew", data: "{}" } });
    worker.onerror?.();
    source.close();
    port.onmessage?.({ data: { type: "grew", data: "late" } });
    expect(heard).toEqual(["{}", "error"]);
    expect(said).toEqual([{ listen: "api/1/events" }, { leave: true }]);
  });
});
