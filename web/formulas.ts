/** A Vite plugin: `import formulas from "./formulas.tex"` gives MathML and a text for each, made when building. */

import { readFile } from "node:fs/promises";
import temml from "temml";
import type { Plugin } from "vite";

export function formulas(): Plugin {
  return {
    name: "formulas",
    enforce: "pre",
    async load(id) {
      if (!id.endsWith(".tex")) return null;
      this.addWatchFile(id);
      return `export default ${JSON.stringify(typeset(await readFile(id, "utf8")))};`;
    },
  };
}

/** Paragraphs that begin with `% name: text`; others are comments. */
export function typeset(source: string): Record<string, { mathml: string; alt: string }> {
  const found: Record<string, { mathml: string; alt: string }> = {};
  for (const paragraph of source.split(/\n\s*\n/)) {
    const match = /^% (\w+): (.+)\n([^%]+)$/.exec(paragraph.trim());
    if (!match) continue;
    const [, name, alt, tex] = match;
    const mathml = temml.renderToString(tex.trim(), { displayMode: true, throwOnError: true });
    // A prime as a letter: as an exponent it would need Temml's own font to have its size.
    const primed = mathml.replace(
      /<msup>(<mi>[^<]*<\/mi>)<mo [^>]*>′<\/mo><\/msup>/g,
      '<mrow>$1<mo lspace="0" rspace="0">′</mo></mrow>',
    );
    // Temml's classes and styles stand for its own style sheet; the pages' policy allows no style attribute.
    found[name] = { mathml: primed.replace(/ (?:class|style)="[^"]*"/g, ""), alt };
  }
  return found;
}
