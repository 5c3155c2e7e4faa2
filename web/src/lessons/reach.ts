/** How far back causal convolutions see: a gradient is sent back through them, and where it arrives is counted. */

/**
 * Count the steps that the last output depends on.
 *
 * @param taps of each layer: the present step and those before it.
 * @param distances between the taps, of each layer from the first one on.
 */
export function reach(taps: number, distances: readonly number[]): number {
  const length = 1 + distances.reduce((most, distance) => most + taps * distance, 0);
  let arrives = new Uint8Array(length); // by steps back from the last: whether a gradient does
  arrives[0] = 1;
  for (const distance of distances.toReversed()) {
    const before = new Uint8Array(length);
    for (let step = 0; step < length; step++) {
      if (arrives[step]) for (let tap = 0; tap < taps; tap++) before[step + tap * distance] = 1;
    }
    arrives = before;
  }
  return arrives.lastIndexOf(1) + 1;
}
