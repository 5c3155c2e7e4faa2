/** The worker as promises: one answer to each question, with progress where there is some. */

import type { Request, Response } from "../engine/protocol";
import EngineWorker from "../engine/worker?worker&inline";

type Asked = Request extends infer R ? (R extends Request ? Omit<R, "id"> : never) : never;
type Progress = Extract<Response, { type: "progress" }>;
type Counted = (done: number, of: number) => void;

interface Waiting {
  resolve(response: Response): void;
  reject(error: Error): void;
  progress: ((progress: Progress) => void) | undefined;
  counted: Counted | undefined;
}

export class Engine {
  private readonly worker: Worker = new EngineWorker();
  private readonly waiting = new Map<number, Waiting>();
  private next = 0;
  private broken: Error | null = null;

  constructor() {
    this.worker.addEventListener("message", ({ data }: MessageEvent<Response>) => {
      const waiting = this.waiting.get(data.id);
      if (!waiting) return;
      if (data.type === "progress") return waiting.progress?.(data);
      if (data.type === "counted") return waiting.counted?.(data.done, data.of);
      this.waiting.delete(data.id);
      if (data.type === "error") waiting.reject(new Error(data.message));
      else waiting.resolve(data);
    });
    // A page whose policy forbids workers, for one: nobody shall wait for what does not come.
    this.worker.addEventListener("error", ({ message }) => {
      this.broken = new Error(message || "the browser refused to start a worker.");
      for (const { reject } of this.waiting.values()) reject(this.broken);
      this.waiting.clear();
    });
  }

  /** Ask, and wait for the answer; `id` of a training, or of lesions, is what cancels it. */
  ask<Answer extends Response["type"]>(
    request: Asked,
    answer: Answer,
    progress?: (progress: Progress) => void,
    counted?: Counted,
  ): { id: number; answer: Promise<Extract<Response, { type: Answer }>> } {
    const id = this.next++;
    const promised = new Promise<Response>((resolve, reject) => {
      if (this.broken) reject(this.broken);
      else this.waiting.set(id, { resolve, reject, progress, counted });
    }).then((response) => {
      if (response.type !== answer) throw new Error(`expected ${answer}, got ${response.type}.`);
      return response as Extract<Response, { type: Answer }>;
    });
    this.worker.postMessage({ ...request, id });
    return { id, answer: promised };
  }

  /** End a training, whose answer comes, cancelled; or lesions, which are then refused. */
  cancel(id: number): void {
    this.worker.postMessage({ type: "cancel", id } satisfies Request);
  }

  close(): void {
    this.worker.terminate();
  }
}
