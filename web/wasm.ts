/** A Vite plugin: `import code from "virtual:kernels"` gives the engine's inner loops for WebAssembly, in base64. */

import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import asc from "assemblyscript/asc";
import type { Plugin } from "vite";

const FOLDER = fileURLToPath(new URL("kernels/", import.meta.url));
const ID = "virtual:kernels";

/** `kernels/` compiled; `-O3` without a runtime, which nothing here needs. */
export async function compiled(folder = FOLDER): Promise<Uint8Array<ArrayBuffer>> {
  const options = ["-O3", "--enable", "simd", "--runtime", "stub", "--noAssert", "--importMemory"];
  let code: Uint8Array<ArrayBuffer> | null = null;
  const { error, stderr } = await asc.main(["index.ts", "--outFile", "kernels.wasm", ...options], {
    readFile: (name) => readFile(folder + name, "utf8").catch(() => null),
    writeFile: (_, contents) => {
      code = contents as Uint8Array<ArrayBuffer>;
    },
  });
  if (error || !code) throw new Error(`the engine's kernels do not compile: ${error?.message}\n${stderr.toString()}`);
  return code;
}

export function kernels(): Plugin {
  return {
    name: "kernels",
    resolveId: (id) => (id === ID ? `\0${ID}` : null),
    async load(id) {
      if (id !== `\0${ID}`) return null;
      for (const name of await readdir(FOLDER)) this.addWatchFile(FOLDER + name);
      return `export default ${JSON.stringify(Buffer.from(await compiled()).toString("base64"))};`;
    },
  };
}
