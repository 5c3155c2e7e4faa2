/** The engine in a Web Worker: requests in, responses out. */

import code from "virtual:kernels";
import { accelerate } from "./kernels";
import { buffers, type Request, type Response } from "./protocol";
import { Session } from "./session";

const scope = self as unknown as DedicatedWorkerGlobalScope;

/** The next task, without the delay that timers have in a browser. */
function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

accelerate(Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0)));

const session = new Session((response: Response) => scope.postMessage(response, buffers(response)), nextTask);

scope.addEventListener("message", ({ data }: MessageEvent<Request>) => void session.receive(data));
