/** The stream of events as a window has it: that of the worker that all windows share. */

import type { Source } from "./events";
import type { Said, Told } from "./hub";

type Listener = (event: { data?: unknown }) => void;

/** What is used of a SharedWorker. */
export interface Shared {
  readonly port: {
    onmessage: ((event: { data: Told }) => void) | null;
    postMessage(message: Said): void;
    close(): void;
  };
  onerror: (() => void) | null;
}

export class SharedSource implements Source {
  private readonly listeners = new Map<string, Listener[]>();

  constructor(
    private readonly worker: Shared,
    address: string,
  ) {
    worker.port.onmessage = ({ data: { type, data } }) => this.tell(type, data);
    worker.onerror = () => this.tell("error"); // its file did not come
    worker.port.postMessage({ listen: address });
  }

  addEventListener(type: string, listener: Listener): void {
    this.listeners.set(type, [...(this.listeners.get(type) ?? []), listener]);
  }

  close(): void {
    this.listeners.clear();
    this.worker.port.postMessage({ leave: true });
    this.worker.port.close();
  }

  private tell(type: string, data?: unknown): void {
    for (const listener of this.listeners.get(type) ?? []) listener({ data });
  }
}
