/** Whether the page is dark now, by the system or by choice: what is painted on a canvas must know. */

function now(): boolean {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
}

class Scheme {
  dark = $state(now());

  constructor() {
    const look = () => {
      this.dark = now();
    };
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);
    const root = document.documentElement;
    new MutationObserver(look).observe(root, { attributeFilter: ["data-theme"] });
    // Paper is light, and what is painted follows no style sheet.
    let chosen: string | undefined;
    window.addEventListener("beforeprint", () => {
      chosen = root.dataset.theme;
      root.dataset.theme = "light";
    });
    window.addEventListener("afterprint", () => {
      if (chosen) root.dataset.theme = chosen;
      else delete root.dataset.theme;
    });
  }
}

export const scheme = new Scheme();

/** A colour of the theme. */
export const colour = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
