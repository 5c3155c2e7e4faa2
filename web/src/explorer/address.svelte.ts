/** Settings in the page's address: a link gives them back. */

import { DEFAULTS, decode, encode, type Settings } from "./settings";

const PAUSE = 250; // milliseconds between two changes of the address, of which browsers allow only so many
type Place = Pick<Settings, "tab" | "chapter">;

const placeOf = ({ tab, chapter }: Settings): Place => ({ tab, chapter });

export class Address {
  settings = $state.raw<Settings>(DEFAULTS);
  /** What the address said that is no setting. */
  refused = $state.raw<readonly string[]>([]);
  private timer = 0;

  constructor() {
    this.read();
    window.addEventListener("popstate", ({ state }) => this.goBack(state as Place | null));
    // Somebody edited the address.
    window.addEventListener("hashchange", () => this.read());
  }

  /** Another place is one to go back from; other settings are of the same place. */
  change(part: Partial<Settings>): void {
    const before = this.settings;
    this.settings = { ...before, ...part };
    this.refused = [];
    clearTimeout(this.timer);
    if (this.settings.tab !== before.tab || this.settings.chapter !== before.chapter) {
      history.replaceState(placeOf(before), "", written(before)); // as it was left, also a moment ago
      history.pushState(placeOf(this.settings), "", written(this.settings));
    } else {
      this.timer = window.setTimeout(() => history.replaceState(history.state, "", written(this.settings)), PAUSE);
    }
  }

  /** Only the place is gone back to: what was answered and set since stays. */
  private goBack(place: Place | null): void {
    if (place === null) return;
    clearTimeout(this.timer);
    this.settings = { ...this.settings, ...place };
    history.replaceState(place, "", written(this.settings));
  }

  private read(): void {
    clearTimeout(this.timer);
    const { settings, refused } = decode(window.location.hash);
    this.settings = settings;
    this.refused = refused;
  }
}

function written(settings: Settings): string {
  const query = encode(settings);
  const { pathname, search } = window.location;
  // An empty hash would leave the one before in place.
  return query ? `#${query}` : `${pathname}${search}`;
}
