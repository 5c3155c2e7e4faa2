/** The lessons' questions answered by the engine itself, without workers. */

import type { Request, Response } from "../src/engine/protocol";
import { Session } from "../src/engine/session";
import { unpack } from "../src/explorer/train/digits";
import file from "../src/explorer/train/digits.json";
import { type Worker, Workers } from "../src/lessons/lab";

type Progress = Extract<Response, { type: "progress" }>;

interface Waiting {
  resolve(response: Response): void;
  reject(error: Error): void;
  progress: ((progress: Progress) => void) | undefined;
}

/** How many sessions there are, and how many requests they got. */
export const counts = { made: 0, asked: 0 };

export function session(): Worker {
  counts.made++;
  const waiting = new Map<number, Waiting>();
  const post = (response: Response): void => {
    const found = waiting.get(response.id);
    if (response.type === "progress") found?.progress?.(response);
    else if (response.type === "error") found?.reject(new Error(response.message));
    else found?.resolve(response);
  };
  const own = new Session(post, async () => {});
  const ask = (request: object, _: string, progress?: (progress: Progress) => void) => {
    const id = counts.asked++;
    const answer = new Promise((resolve, reject) => waiting.set(id, { resolve, reject, progress }));
    // Not at once: the runner of the tests has to be heard between them.
    setImmediate(() => void own.receive({ ...request, id } as Request));
    return { answer };
  };
  return { ask: ask as unknown as Worker["ask"], close: () => {} };
}

export const laboratory = (): Workers => new Workers(session, () => unpack(file));
