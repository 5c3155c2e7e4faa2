/**
 * Three builds: pages with files of their own for the server, the explorer as one file that needs no server, and the
 * script that `levada report` puts into its pages.
 *
 * All go into the Python package; the second is also what the documentation links to.
 */

import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";
import { formulas } from "./formulas";
import { palette } from "./palette";
import { kernels } from "./wasm";

const STATIC = "../src/levada/web/static";

/** Put scripts and styles into the page, so that it opens from a disk. */
function inline(): Plugin {
  return {
    name: "inline",
    enforce: "post",
    generateBundle(_, bundle) {
      const take = (path: string): string => {
        const name = path.replace(/^\.?\//, "");
        const file = bundle[name];
        delete bundle[name];
        return file.type === "chunk" ? file.code : String(file.source);
      };
      for (const file of Object.values(bundle)) {
        if (file.type !== "asset" || !file.fileName.endsWith(".html")) continue;
        // A function as the replacement: in a string, `$&` of minified code would be a pattern.
        file.source = String(file.source)
          .replace(/<link rel="stylesheet"[^>]*href="([^"]+)">/g, (_, path) => `<style>${take(path)}</style>`)
          .replace(/<script type="module"[^>]*src="([^"]+)"><\/script>/g, (_, path) => {
            // What Vite would put there later: the files to fetch with a chunk, of which there are none.
            const code = take(path).replaceAll("__VITE_PRELOAD__", "void 0").replaceAll("</script", "<\\/script");
            return `<script type="module">${code}</script>`;
          });
      }
    },
  };
}

/** A classic script and a style under names that Python knows, to be put into a page with their hashes. */
const REPORT = {
  outDir: `${STATIC}/report`,
  emptyOutDir: true,
  cssCodeSplit: false,
  modulePreload: { polyfill: false },
  rollupOptions: {
    input: ["src/report/main.ts"],
    output: { format: "iife" as const, entryFileNames: "report.js", assetFileNames: "report[extname]" },
  },
};

export default defineConfig(({ mode }) => {
  if (mode === "report") return { plugins: [kernels(), svelte()], build: REPORT };
  const single = mode === "single";
  return {
    base: "./",
    plugins: [formulas(), kernels(), palette(), svelte(), ...(single ? [inline()] : [])],
    build: {
      outDir: single ? `${STATIC}/single` : STATIC,
      emptyOutDir: true,
      assetsInlineLimit: single ? Number.MAX_SAFE_INTEGER : 0,
      cssCodeSplit: !single,
      modulePreload: { polyfill: false },
      rollupOptions: single
        ? { input: ["explore.html"], output: { inlineDynamicImports: true } }
        : { input: ["index.html", "explore.html"] },
    },
    worker: { format: "iife", plugins: () => [kernels()] }, // a page opened from a disk may not start a module worker
    test: { include: ["test/**/*.test.ts"], testTimeout: 120_000 }, // a busy machine takes ten times as long
  };
});
