/** The server's events, with a state that the page can show: a connection that is dead is said to be so. */

export type Connection = "connecting" | "connected" | "lost";

/** The types of the server's events. */
export const EVENTS = ["appeared", "grew", "ended", "gone", "heartbeat"];

/** What is used of an EventSource. */
export interface Source {
  addEventListener(type: string, listener: (event: { data?: unknown }) => void): void;
  close(): void;
}

/** What is used of the document. */
export interface Shown {
  readonly hidden: boolean;
  addEventListener(type: "visibilitychange", listener: () => void): void;
  removeEventListener(type: "visibilitychange", listener: () => void): void;
}

export interface Heard {
  /** Of a connection that is new, or new again: what came in between was missed, and is to be asked for. */
  connected(): void;
  state(state: Connection): void;
  event(type: string, data: unknown): void;
}

const SILENCE = 40_000; // two beats of the server were missed
const FIRST_PAUSE = 1_000;
const LONGEST_PAUSE = 10_000;

/** Events while the page is shown: hidden pages need none, and where each has a stream of its own, it is a connection. */
export class Events {
  private source: Source | undefined;
  private again: ReturnType<typeof setTimeout> | undefined;
  private watchdog: ReturnType<typeof setTimeout> | undefined;
  private pause = FIRST_PAUSE;
  private closed = true;

  constructor(
    private readonly open: () => Source,
    private readonly types: readonly string[],
    private readonly heard: Heard,
    private readonly page: Shown,
  ) {}

  connect(): void {
    this.stop();
    if (this.closed) this.page.addEventListener("visibilitychange", this.look);
    this.closed = false;
    if (this.page.hidden) return;
    const source = this.open();
    this.source = source;
    this.listen();
    source.addEventListener("open", () => {
      if (source !== this.source) return;
      this.pause = FIRST_PAUSE;
      this.listen();
      this.heard.state("connected");
      this.heard.connected();
    });
    source.addEventListener("error", () => {
      if (source === this.source) this.lose();
    });
    for (const type of this.types) {
      source.addEventListener(type, ({ data }) => {
        if (source !== this.source) return;
        this.listen();
        const told = parsed(data);
        if (told !== undefined) this.heard.event(type, told);
      });
    }
  }

  close(): void {
    this.closed = true;
    this.page.removeEventListener("visibilitychange", this.look);
    this.stop();
  }

  /** Try at once, as when somebody asks for it. */
  retry(): void {
    this.pause = FIRST_PAUSE;
    this.connect();
  }

  private readonly look = (): void => {
    if (this.page.hidden) {
      this.stop();
    } else {
      this.heard.state("connecting");
      this.retry();
    }
  };

  private stop(): void {
    clearTimeout(this.again);
    clearTimeout(this.watchdog);
    this.source?.close();
    this.source = undefined;
  }

  private listen(): void {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.lose(), SILENCE);
  }

  /** A browser tries again by itself after some errors and not after others: here it is tried after all. */
  private lose(): void {
    this.stop();
    this.heard.state("lost");
    if (this.closed) return;
    this.again = setTimeout(() => this.connect(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
  }
}

function parsed(data: unknown): unknown {
  if (typeof data !== "string" || data === "") return undefined;
  try {
    return JSON.parse(data);
  } catch {
    return undefined;
  }
}
