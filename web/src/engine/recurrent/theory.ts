/** What theory says of a recurrent network's memory: `levada.theory.memory`. */

import { sigmoid } from "../activation";
import type { CellName } from "./cells";

/** What is left of a gradient at the horizon. */
export const LEFT = 1e-3;

/** `-1 / ln(carry)`: steps after which a memory carried by this factor per step has fallen to 1/e. */
export function timeScale(carry: number): number {
  if (carry === 0) return 0;
  return carry >= 1 ? Number.POSITIVE_INFINITY : -1 / Math.log(carry);
}

/** `1 / ln(1 + e^-bias)`: the same of a forget gate that sees only its bias. */
export function gateTimeScale(bias: number): number {
  const loss = Math.log1p(Math.exp(-Math.abs(bias))) + Math.max(-bias, 0);
  return loss > 0 ? 1 / loss : Number.POSITIVE_INFINITY;
}

/** Steps after which a gradient with this factor per step has fallen to `left`. */
export function memoryHorizon(carry: number, left = LEFT): number {
  return -Math.log(left) * timeScale(carry);
}

/** `ln(T - 1)`: the forget bias with which memory lasts about T steps. */
export function chronoBias(horizon: number): number {
  return Math.log(horizon - 1);
}

/**
 * Natural logarithm of what a memory keeps after k = 0, 1, ... `steps` steps where each unit carries itself on by the
 * factor `carry` and independent random weights mix all of them: the root of
 *
 *     sum_j binomial(k, j)^2 carry^(2(k - j)) gain^(2j)
 *
 * (`levada.theory.carried_gradient`; the limit of wide layers at a given k).
 */
export function logCarried(carry: number, gain: number, steps: number): Float64Array {
  const factorials = new Float64Array(steps + 1);
  for (let k = 1; k <= steps; k++) factorials[k] = factorials[k - 1] + Math.log(k);
  const power = (base: number, exponent: number) => (exponent === 0 ? 0 : exponent * Math.log(base));
  return Float64Array.from({ length: steps + 1 }, (_, k) => {
    const logs = Array.from({ length: k + 1 }, (_, j) => {
      const binomial = factorials[k] - factorials[j] - factorials[k - j];
      return 2 * (binomial + power(carry, k - j) + power(gain, j));
    });
    const most = Math.max(...logs);
    if (!Number.isFinite(most)) return most;
    return (most + Math.log(logs.reduce((sum, log) => sum + Math.exp(log - most), 0))) / 2;
  });
}

/** A cell near a state of zero, where tanh has slope 1 and gates their biases' values: carry and gain of `logCarried`. */
export function nearZero(cell: CellName, gain: number, forgetBias = 0): { carry: number; gain: number } {
  switch (cell) {
    case "rnn":
      return { carry: 0, gain };
    case "lstm":
      return { carry: sigmoid(forgetBias), gain: gain / 4 }; // input and output gate are half open
    case "gru":
      return { carry: sigmoid(forgetBias), gain: (gain * (1 - sigmoid(forgetBias))) / 2 }; // so is the reset gate
  }
}
