/** What all parts of the page share: the runs, the connection, and the address. */

import { ApiError, ask, type Row, type Runs } from "./api";
import { type Connection, Events, type Heard, type Source } from "./events";
import { decode, encode, type Page } from "./place";
import { openSession, takeToken } from "./token";

const TYPES = ["appeared", "grew", "ended", "gone", "heartbeat"];

export class Live {
  runs = $state.raw<ReadonlyMap<string, Row>>(new Map());
  connection = $state<Connection>("connecting");
  /** How often the connection was made: what failed before is asked again. */
  connections = $state(0);
  /** Whether the list has come once. */
  known = $state(false);
  leftOut = $state(0);
  waiting = $state(0);
  version = $state("");
  problem = $state("");
  private readonly events: Events;

  constructor(open: () => Source = () => new EventSource("api/1/events") as Source) {
    const heard: Heard = {
      connected: () => {
        this.connections++;
        this.refresh();
      },
      state: (state) => {
        this.connection = state;
      },
      event: (type, data) => this.hear(type, data as Row),
    };
    this.events = new Events(open, TYPES, heard, document);
  }

  async start(): Promise<void> {
    await openSession(takeToken());
    this.refresh();
    this.events.connect();
  }

  stop(): void {
    this.events.close();
  }

  retry(): void {
    this.events.retry();
  }

  /** Ask for the whole list: at the beginning, and whenever something may have been missed. */
  async refresh(): Promise<void> {
    try {
      const told = await ask<Runs>("runs");
      this.runs = new Map(told.runs.map((row) => [row.id, row]));
      this.leftOut = told.left_out;
      this.waiting = told.waiting;
      this.version = told.version;
      this.known = true;
      this.problem = "";
    } catch (error) {
      this.problem = error instanceof ApiError ? error.message : String(error);
    }
  }

  private hear(type: string, row: Row): void {
    if (type === "heartbeat" || typeof row?.id !== "string") return;
    const runs = new Map(this.runs);
    if (!runs.has(row.id)) this.waiting = Math.max(0, this.waiting - 1);
    if (type === "gone") runs.delete(row.id);
    else runs.set(row.id, row);
    this.runs = runs;
  }
}

/** The address as state: what is set is written into it, and what is typed or gone back to is read. */
export class Route {
  page = $state.raw<Page>(decode(location.hash));
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    window.addEventListener("hashchange", () => {
      clearTimeout(this.timer);
      this.page = decode(location.hash);
    });
  }

  /** Go to another page: one can go back from it. */
  open(page: Page): void {
    clearTimeout(this.timer);
    this.page = page;
    history.pushState(null, "", encode(page));
  }

  /** Change what is seen of this page. Browsers count how often an address changes: a drag is written at its end. */
  set(page: Page): void {
    this.page = page;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => history.replaceState(null, "", encode(page)), 150);
  }
}
