/** What all parts of the page share: the runs, the connection, and the address. */

import { ApiError, address, ask, type Row, type Runs } from "./api";
import { type Connection, EVENTS, Events, type Heard, type Source } from "./events";
import { decode, encode, type Page, unmeant } from "./place";
import { type Shared, SharedSource } from "./shared";
import { onSession, openSession } from "./token";

const SHOWN = 100; // milliseconds that a first picture has

/** Whether an answer has come with the page, as the server sends the list along to who may read it. */
const isHere = (path: string): boolean =>
  performance.getEntriesByName(new URL(address(path), document.baseURI).href).length > 0;

/** Open the stream; where a browser has no shared workers, as on some phones, each window has its own. */
function openStream(): Source {
  const address = new URL("api/1/events", document.baseURI).href;
  if (typeof SharedWorker === "undefined") return new EventSource(address) as Source;
  const worker = new SharedWorker(new URL("./stream.ts", import.meta.url), { name: "levada events" });
  return new SharedSource(worker as unknown as Shared, address);
}

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
  /** What the served folder is called; empty where the server has none to show. */
  folder = $state("");
  /** Whether the server answers, but not to this page: it has no token, or that of a server before. */
  refused = $state(false);
  problem = $state("");
  private readonly events: Events;
  private forget: () => void = () => undefined;

  constructor(open: () => Source = openStream) {
    const heard: Heard = {
      connected: () => {
        this.connections++;
        this.refresh();
      },
      state: (state) => {
        this.connection = state;
        if (state === "lost") this.refresh(); // which says why
      },
      event: (type, data) => this.hear(type, data as Row),
    };
    this.events = new Events(open, EVENTS, heard, document);
  }

  /** Take the list where it has come with the page: the first picture has it then. */
  async first(): Promise<void> {
    if (isHere("runs")) await this.refresh();
  }

  async start(token: string | null): Promise<void> {
    if (this.known) await new Promise((shown) => setTimeout(shown, SHOWN)); // what is to be seen comes first
    await openSession(token);
    if (!this.known) await this.refresh();
    this.events.connect();
    this.forget = onSession(() => this.retry());
  }

  stop(): void {
    this.forget();
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
      this.folder = told.folder;
      this.known = true;
      this.refused = false;
      this.problem = "";
    } catch (error) {
      this.refused = error instanceof ApiError && error.status === 401;
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
  /** What the address says and the page does not know. */
  unmeant = $state.raw<readonly string[]>(unmeant(location.hash));
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    window.addEventListener("hashchange", () => {
      clearTimeout(this.timer);
      this.page = decode(location.hash);
      this.unmeant = unmeant(location.hash);
    });
  }

  /** Go to another page: one can go back from it. */
  open(page: Page): void {
    clearTimeout(this.timer);
    this.page = page;
    this.unmeant = [];
    history.pushState(null, "", encode(page));
  }

  /** Change what is seen of this page. Browsers count how often an address changes: a drag is written at its end. */
  set(page: Page): void {
    this.page = page;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => history.replaceState(null, "", encode(page)), 150);
  }
}
