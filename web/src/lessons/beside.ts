/** Where a figure beside the text stands while the page is scrolled. */

/** Room above and below it, in pixels. */
const ROOM = 8;

/**
 * Top of the figure in the window, in pixels, nearest to where scrolling would take it.
 *
 * One that fits stays at the window's top. A higher one goes with the text, down until its end is seen and up until its
 * beginning is: no part of it needs a scroll of its own.
 */
export function placed(wanted: number, height: number, view: number): number {
  return Math.min(Math.max(wanted, view - height - ROOM), ROOM);
}
