/** Settings in the page's address: a link gives them back. */

import { DEFAULTS, decode, encode, type Settings } from "./settings";

const PAUSE = 250; // milliseconds between two changes of the address, of which browsers allow only so many

export class Address {
  settings = $state.raw<Settings>(DEFAULTS);
  /** What the address said that is no setting. */
  refused = $state.raw<readonly string[]>([]);
  private timer = 0;

  constructor() {
    this.read();
    // Somebody edited the address, or went back.
    window.addEventListener("hashchange", () => this.read());
  }

  change(part: Partial<Settings>): void {
    this.settings = { ...this.settings, ...part };
    this.refused = [];
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.write(), PAUSE);
  }

  private read(): void {
    clearTimeout(this.timer);
    const { settings, refused } = decode(window.location.hash);
    this.settings = settings;
    this.refused = refused;
  }

  private write(): void {
    const query = encode(this.settings);
    const { pathname, search } = window.location;
    // An empty hash would leave the one before in place.
    history.replaceState(history.state, "", query ? `#${query}` : `${pathname}${search}`);
  }
}
