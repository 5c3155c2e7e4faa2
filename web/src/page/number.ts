/** Numbers in words: the same on every page, and as the report writes them. */

const SUPERSCRIPTS: Record<string, string> = Object.fromEntries(
  [..."-0123456789"].map((c, i) => [c, "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"[i]]),
);

/** A power of ten, such as 10⁻¹². */
export function superscript(exponent: number): string {
  return `10${[...String(exponent)].map((c) => SUPERSCRIPTS[c]).join("")}`;
}

function scientific(size: number, exponent: number, digits: number): string {
  // Rounding may carry: 9.996 is 10.00, of which the exponent has one more.
  const rounded = size.toPrecision(digits);
  return Number(rounded) >= 10 ? scientific(size / 10, exponent + 1, digits) : `${rounded}×${superscript(exponent)}`;
}

/** A number as text, in `digits` significant digits. */
export function short(value: number, digits = 3): string {
  if (Number.isNaN(value)) return "NaN";
  const sign = value < 0 ? "−" : "";
  const size = Math.abs(value);
  if (size === Number.POSITIVE_INFINITY) return `${sign}∞`;
  if (size < 1e6 && Number.isInteger(size)) return sign + grouped(size);
  if (size >= 1e-3 && size < 1e5) return sign + (size >= 1000 ? grouped(Math.round(size)) : plain(size, digits));
  const exponent = Math.floor(Math.log10(size));
  // Two steps: 10^320 would be infinite, and 10^-320 has lost its digits.
  const half = Math.trunc(exponent / 2);
  return sign + scientific(size / 10 ** half / 10 ** (exponent - half), exponent, digits);
}

/** The number of which `log` is the natural logarithm, also where no float holds it. */
export function shortExp(log: number, digits = 3): string {
  const log10 = log / Math.LN10;
  if (!(Math.abs(log10) > 300 && Number.isFinite(log10))) return short(Math.exp(log), digits);
  const exponent = Math.floor(log10);
  return scientific(10 ** (log10 - exponent), exponent, digits);
}

/** A whole number with commas. */
export function grouped(value: number): string {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ",");
}

function plain(size: number, digits: number): string {
  const text = size.toPrecision(digits);
  // Of more whole digits than are asked for, which it would write as 2.2e+2: all of them, as above 1,000.
  if (text.includes("e")) return grouped(Math.round(size));
  return text.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

/** "1 layer", "3 layers". */
export function counted(count: number, noun: string): string {
  return `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** "a, b and c". */
export function listed(words: readonly string[]): string {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
