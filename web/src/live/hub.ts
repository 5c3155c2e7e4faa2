/**
 * One stream of events for all windows of a browser, held by a worker that they share.
 *
 * A browser keeps six connections to a server for all of its windows: with a stream each, the sixth window would leave
 * none for questions.
 */

import { EVENTS, type Source } from "./events";

/** What is used of a MessagePort. */
export interface Port {
  onmessage: ((event: { data: unknown }) => void) | null;
  postMessage(message: Told): void;
}

/** What a window says: that it wants to hear the events of an address, or no more. */
export type Said = { readonly listen: string } | { readonly leave: true };

/** What it is told: an event of the stream, as the stream gives it. */
export interface Told {
  readonly type: string;
  readonly data?: unknown;
}

export class Hub {
  private readonly ports = new Set<Port>();
  private source: Source | undefined;
  private open = false;

  constructor(private readonly make: (address: string) => Source) {}

  add(port: Port): void {
    port.onmessage = ({ data }) => {
      const said = data as Said;
      if ("listen" in said) this.join(port, said.listen);
      else this.leave(port);
    };
  }

  private join(port: Port, address: string): void {
    this.ports.add(port);
    if (!this.source) this.connect(address);
    else if (this.open) port.postMessage({ type: "open" });
  }

  private leave(port: Port): void {
    this.ports.delete(port);
    if (this.ports.size === 0) this.stop();
  }

  private connect(address: string): void {
    const source = this.make(address);
    this.source = source;
    const hear = (type: string, meant: () => void = () => undefined) =>
      source.addEventListener(type, ({ data }) => {
        if (source !== this.source) return;
        meant();
        for (const port of this.ports) port.postMessage(typeof data === "string" ? { type, data } : { type });
        if (type === "error") this.ports.clear(); // each window comes again, when it thinks it worth while
      });
    hear("open", () => {
      this.open = true;
    });
    hear("error", () => this.stop());
    for (const type of EVENTS) hear(type);
  }

  private stop(): void {
    this.source?.close();
    this.source = undefined;
    this.open = false;
  }
}
