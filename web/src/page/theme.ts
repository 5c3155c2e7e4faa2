/** Light or dark: as the system says, or as somebody chose, kept where the browser allows it. */

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const KEY = "levada-theme";

/** A page of a disk, or a private window, may refuse its storage. */
function storage(): Storage | null {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

export function storedTheme(): Theme {
  const known = storage()?.getItem(KEY);
  return THEMES.find((theme) => theme === known) ?? "system";
}

export function applyTheme(theme: Theme): void {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    storage()?.setItem(KEY, theme);
  } catch {
    // A full storage keeps no choice; the page is as chosen all the same.
  }
}
