/** Ticks of the figure of losses. */

import { short, superscript } from "../page/number";

const LABELS = 6;

/** Ticks of a logarithmic axis: so many decades that a few have a label, or 1 and 3, or 1, 2 and 5 of each where there are few. */
export function logTicks(low: number, high: number): number[] {
  const [from, to] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const factors = to - from <= 2 ? [1, 2, 5] : to - from <= 4 ? [1, 3] : [1];
  const every = Math.max(1, Math.ceil((to - from) / LABELS));
  const ticks: number[] = [];
  for (let exponent = Math.ceil(from / every) * every; exponent <= to; exponent += every) {
    for (const factor of factors) ticks.push(Number(`${factor}e${exponent}`));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

export function tickWords(tick: number, log: boolean): string {
  const exponent = Math.round(Math.log10(tick));
  return log && (exponent < -3 || exponent > 4) && tick === Number(`1e${exponent}`)
    ? superscript(exponent)
    : short(tick, 6);
}
