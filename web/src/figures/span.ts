/** Stretches of an axis: what is seen of it, and how that moves. Ends are exclusive, as steps and sites are counted. */

export interface Span {
  readonly from: number;
  readonly to: number;
}

export const length = (span: Span): number => span.to - span.from;

export const same = (a: Span, b: Span): boolean => a.from === b.from && a.to === b.to;

/** Move a stretch into its limits, and let it be no shorter than `least` and no longer than they are. */
export function within(span: Span, limits: Span, least = 1): Span {
  const size = Math.min(Math.max(length(span), least), length(limits));
  const from = Math.min(Math.max(span.from, limits.from), limits.to - size);
  return { from, to: from + size };
}

/**
 * Make a stretch shorter (a factor below 1) or longer about a place, which stays where it is.
 *
 * Its ends become whole numbers, so that a link that keeps them gives the same picture.
 */
export function zoom(span: Span, limits: Span, factor: number, about: number, least: number): Span {
  const size = Math.min(Math.max(length(span) * factor, Math.min(least, length(limits))), length(limits));
  const share = length(span) > 0 ? (about - span.from) / length(span) : 0.5;
  return whole(within({ from: about - share * size, to: about + (1 - share) * size }, limits, least), limits, least);
}

export function pan(span: Span, limits: Span, by: number): Span {
  const moved = Math.abs(by) < 1 ? Math.sign(by) : Math.round(by);
  return within({ from: span.from + moved, to: span.to + moved }, limits, 1);
}

/** Move a stretch as little as lets a place be seen. */
export function reveal(span: Span, limits: Span, place: number): Span {
  if (place < span.from) return pan(span, limits, place - span.from);
  if (place + 1 > span.to) return pan(span, limits, place + 1 - span.to);
  return span;
}

function whole(span: Span, limits: Span, least: number): Span {
  const from = Math.round(span.from);
  return within({ from, to: Math.max(from + least, Math.round(span.to)) }, limits, least);
}
