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
    new MutationObserver(look).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }
}

export const scheme = new Scheme();

/** A colour of the theme. */
export const colour = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
