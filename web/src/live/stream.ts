/** The worker that holds the stream of events for all windows. */

import type { Source } from "./events";
import { Hub, type Port } from "./hub";

const hub = new Hub((address) => new EventSource(address) as Source);

addEventListener("connect", (event) => {
  for (const port of (event as MessageEvent).ports) hub.add(port as unknown as Port);
});
