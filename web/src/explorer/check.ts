/** Ask the server, where there is one, what `levada check` says of a network. */

import type { ConnectionName } from "../engine/connections/index";
import { checkRequest, type Settings } from "./settings";

export interface Finding {
  readonly severity: "error" | "warn" | "info";
  readonly status: "fired" | "clear" | "unknown";
  readonly title: string;
  readonly claim: string;
  readonly consequence: string;
}

export interface Checked {
  readonly verdict: "healthy" | "warn" | "error" | "unknown";
  readonly headline: string;
  readonly claim: string;
  readonly findings: readonly Finding[];
  readonly seconds: number;
}

/** Whether a server of levada's can be asked: a page from a disk, or of another site, has none. */
export function canAsk(token: string | null): token is string {
  return token !== null && window.location.protocol.startsWith("http");
}

/** What one does where a server is there, and the window has no token to ask it by. */
export const TOKENLESS =
  "A server is there, but this window has no token of it, by which it computes: a window that is opened from another gets none. Open the address that the server printed in this window; this page's address, opened after it, brings the network back.";

/** Whether the page comes from a server of levada's, which may ask for the token also to read. */
export async function isServed(): Promise<boolean> {
  if (!window.location.protocol.startsWith("http")) return false;
  const answer = await fetch("api/1/runs").catch(() => null);
  const json = answer?.headers.get("content-type")?.startsWith("application/json") ?? false;
  return json && (answer?.ok || answer?.status === 401);
}

export async function ask(
  settings: Settings,
  name: ConnectionName,
  token: string,
  signal: AbortSignal,
): Promise<Checked> {
  const asked = fetch("api/1/compute/check", {
    method: "POST",
    signal,
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify(checkRequest(settings, name)),
  });
  const response = await asked.catch(() => {
    throw new Error("The server does not answer. Start it again, and open the address that it prints.");
  });
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer as Checked;
  if (response.status === 429) throw new Error("The server computes others just now. Ask again in a moment.");
  if (response.status === 401) {
    throw new Error(
      "This page's token is not the server's, which was started anew, or is another one. Open the address that it printed; this page's address, opened in that window, brings the network back.",
    );
  }
  throw new Error(answer?.detail ?? `The server answered ${response.status}.`);
}
