/** The colours of heat maps: told apart by who does not tell all colours apart, and rising in lightness. */

/** The ramp of the report, from low to high. */
export const RISING = (
  "#10285a #153668 #20436e #2f4f71 #3f5c74 #4f6877 #607478 #708079 " +
  "#828c78 #939875 #a4a46f #b6b068 #c8bd5e #dbc954 #ecd64e #fbe566"
).split(" ");

/** Of a ratio: below 1, the same, above 1; the middle is near the paper. */
export const DIVERGING = {
  light: "#063f55 #0b6a8c #4f9ab8 #a4cbdb #f1efe9 #f0c3a0 #d98346 #b54c08 #702c00".split(" "),
  dark: "#b5e6f6 #63c1e0 #348aa6 #24586b #262d31 #6d4326 #b0662f #ff9d5c #ffd6b8".split(" "),
};

type Colour = readonly [number, number, number];

export function parse(hex: string): Colour {
  const value = Number.parseInt(hex.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/** A colour as a pixel of a canvas, opaque. */
export function pixel([red, green, blue]: Colour): number {
  return ((255 << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0;
}

/** `count` colours, evenly between those given. */
export function steps(colours: readonly string[], count = 256): Uint32Array {
  const parsed = colours.map(parse);
  return Uint32Array.from({ length: count }, (_, at) => {
    const place = (at / (count - 1)) * (parsed.length - 1);
    const from = Math.min(Math.floor(place), parsed.length - 2);
    const share = place - from;
    const mixed = parsed[from].map((value, i) => value + share * (parsed[from + 1][i] - value));
    return pixel(mixed as unknown as Colour);
  });
}

/** The same as a gradient of CSS. */
export const gradient = (colours: readonly string[]): string => `linear-gradient(to right, ${colours.join(", ")})`;

const LEAST_DECADES = 3;

/** What the colours span: no less than three decades, so that what hardly changes looks as if it hardly changes. */
export function span(found: readonly [number, number] | null): [number, number] {
  if (!found) return [-LEAST_DECADES, 0];
  const room = Math.max(0, LEAST_DECADES - (found[1] - found[0])) / 2;
  return [found[0] - room, found[1] + room];
}

/** The same of a ratio: as far below 1 as above it, at least a factor of ten. */
export function balanced(found: readonly [number, number] | null): [number, number] {
  const most = Math.max(1, ...(found ?? []).map(Math.abs));
  return [-most, most];
}
