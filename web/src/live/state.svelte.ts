/** What all parts of the page share: the runs, the connection, and the address. */

import { address, type Row } from "./api";
import { type Connection, EVENTS, Events, type Heard, type Source } from "./events";
import { Listed } from "./listed.svelte";
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

export class Live extends Listed {
  connection = $state<Connection>("connecting");
  /** How often the connection was made: what failed before is asked again. */
  connections = $state(0);
  private readonly events: Events;
  private forget: () => void = () => undefined;

  constructor(open: () => Source = openStream) {
    super();
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
