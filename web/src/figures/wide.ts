/** What grows on wide screens. */

/** A figure's height, which on a wide screen is so much of its width that it is no strip. */
export function tall(height: number, width: number, share: number, most: number): number {
  return Math.round(Math.max(height, Math.min(share * width, most * height)));
}

/** How much larger the page's letters are than those of a small screen. */
export function enlarged(): number {
  return Number.parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
}
