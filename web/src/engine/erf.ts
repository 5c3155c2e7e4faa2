/** The error function to 1e-15, by Taylor's series around the nearest of fixed points. */

const STEP = 1 / 32;
const REACH = 6; // 1 - erf(6) is 2e-17, below half the spacing of numbers near 1
const TERMS = 9;

/** `2/sqrt(pi) exp(-x^2) (x + 2 x^3/3 + 4 x^5/15 + ...)`: all terms are positive, nothing cancels. */
function series(x: number): number {
  let term = x;
  let total = x;
  for (let n = 1; term > 1e-18 * total; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    total += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * total;
}

/** `erf^(k)(x) / k!` for k below TERMS: the derivatives are Hermite's polynomials times the density. */
function coefficients(x: number): number[] {
  const found = [series(x)];
  const density = (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x);
  let [before, hermite, factorial] = [0, 1, 1];
  for (let k = 1; k < TERMS; k++) {
    factorial *= k;
    found.push((density * hermite) / factorial);
    // The sign (-1)^(k-1) of the derivative is taken into the recurrence.
    [before, hermite] = [hermite, -2 * x * hermite - 2 * (k - 1) * before];
  }
  return found;
}

const table = new Float64Array((REACH / STEP + 1) * TERMS);
for (let place = 0; place <= REACH / STEP; place++) table.set(coefficients(place * STEP), place * TERMS);

export function erf(x: number): number {
  const size = Math.abs(x);
  if (size > REACH) return Math.sign(x);
  if (Number.isNaN(size) || size === 0) return x; // zero with its sign
  const place = Math.round(size / STEP);
  const away = size - place * STEP;
  const start = place * TERMS;
  let value = table[start + TERMS - 1];
  for (let k = TERMS - 2; k >= 0; k--) value = value * away + table[start + k];
  return x < 0 ? -value : value;
}
