/** What the colours of a number's cell mean, in the words of every page; `levada.report.palette` has the same. */

export const SIGNS = "Blue is above zero, brown (orange on a dark page) below.";
/** Where there is such a cell. */
export const BROKEN = "Purple is NaN or infinite.";
