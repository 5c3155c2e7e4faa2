/** The digits that networks are trained on: fetched and unpacked when somebody opens the tab. */

import type { Data } from "../../engine/protocol";

export interface Digits {
  readonly train: Data;
  readonly heldOut: Data;
  readonly pixels: number;
  readonly classes: number;
}

export const TRAINED_ON = 1437;

interface Packed {
  readonly count: number;
  readonly side: number;
  readonly deflated: string;
}

/** Pixels with mean 0 and deviation 1 over those that are trained on; the last 360 images are held out. */
export async function unpack({ count, side, deflated }: Packed): Promise<Digits> {
  const bytes = Uint8Array.from(atob(deflated), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const pixels = side * side;
  const seen = data.subarray(0, TRAINED_ON * pixels);
  const mean = seen.reduce((sum, value) => sum + value, 0) / seen.length;
  const deviation = Math.sqrt(seen.reduce((sum, value) => sum + (value - mean) ** 2, 0) / seen.length);
  const inputs = Float32Array.from(data.subarray(0, count * pixels), (value) => (value - mean) / deviation);
  const labels = Int32Array.from(data.subarray(count * pixels));
  const part = (from: number, to: number): Data => ({
    inputs: inputs.slice(from * pixels, to * pixels),
    labels: labels.slice(from, to),
  });
  return { train: part(0, TRAINED_ON), heldOut: part(TRAINED_ON, count), pixels, classes: 10 };
}

let known: Promise<Digits> | null = null;

export function digits(): Promise<Digits> {
  known ??= import("./digits.json").then((file) => unpack(file.default));
  return known;
}
