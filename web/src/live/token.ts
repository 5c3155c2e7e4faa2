/** The launch's token: it stands behind `#` in the address that `levada serve` prints, and is kept for this tab. */

import { tokenOf } from "./place";

const KEY = "levada-token";

function storage(): Storage | null {
  try {
    return window.sessionStorage;
  } catch {
    return null; // refused in a private window
  }
}

/** Take the token out of the address, where others could read it, or give the one that is kept; null without any. */
export function takeToken(): string | null {
  const { token, rest } = tokenOf(location.hash);
  if (token === null) return storage()?.getItem(KEY) ?? null;
  history.replaceState(null, "", rest);
  try {
    storage()?.setItem(KEY, token);
  } catch {
    // It is known until the page is loaded again.
  }
  return token;
}

/** An address with a token that is put over that of an open page changes what stands behind `#` alone: begin anew with it. */
export function followToken(): void {
  window.addEventListener("hashchange", () => {
    if (tokenOf(location.hash).token !== null) location.reload();
  });
}

const CHANNEL = "levada session";

/** Let this browser read where reading asks for the token: an event source can send no header, but a cookie. */
export async function openSession(token: string | null): Promise<void> {
  if (token === null) return;
  const headers = { authorization: `Bearer ${token}` };
  const answer = await fetch("api/1/session", { method: "POST", headers }).catch(() => null);
  if (!answer?.ok || typeof BroadcastChannel === "undefined") return;
  const channel = new BroadcastChannel(CHANNEL);
  channel.postMessage("opened");
  channel.close();
}

/** Hear that another window was let in: the cookie is that of all windows. Gives what ends it. */
export function onSession(heard: () => void): () => void {
  if (typeof BroadcastChannel === "undefined") return () => undefined;
  const channel = new BroadcastChannel(CHANNEL);
  channel.onmessage = heard;
  return () => channel.close();
}
