/** What options may be: they come from a page's controls, or from its address. */

export function requireInteger(what: string, value: number, least: number, most: number): void {
  if (!(Number.isInteger(value) && value >= least && value <= most)) {
    throw new RangeError(`${what} must be an integer from ${least} to ${most}, got ${value}.`);
  }
}

export function requireOneOf(what: string, value: string, known: readonly string[]): void {
  if (!known.includes(value)) throw new RangeError(`${what} ${value} is not known. Known: ${known.join(", ")}.`);
}
