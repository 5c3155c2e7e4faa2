/** A Vite plugin: `import "virtual:palette.css"` gives the colours of both themes, from the file that reports read too. */

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import type { Plugin } from "vite";

const FILE = fileURLToPath(new URL("../src/levada/report/templates/palette.json", import.meta.url));
const ID = "virtual:palette.css";

export function palette(): Plugin {
  return {
    name: "palette",
    resolveId: (id) => (id === ID ? `\0${ID}` : null),
    async load(id) {
      if (id !== `\0${ID}`) return null;
      this.addWatchFile(FILE);
      return sheet(JSON.parse(await readFile(FILE, "utf8")));
    },
  };
}

type Colours = Readonly<Record<string, string>>;

/** Dark is what the system says, or what was chosen, which counts more; paper is always light. */
export function sheet({ light, dark }: { readonly light: Colours; readonly dark: Colours }): string {
  const block = (selector: string, scheme: string, colours: Colours) => {
    const all = Object.entries(colours).map(([name, colour]) => `--${name}: ${colour};`);
    return `${selector} { color-scheme: ${scheme}; ${all.join(" ")} }`;
  };
  return [
    block(":root", "light", light),
    `@media screen { ${block(':root[data-theme="dark"]', "dark", dark)} }`,
    `@media screen and (prefers-color-scheme: dark) { ${block(':root:not([data-theme="light"])', "dark", dark)} }`,
  ].join("\n");
}
