/**
 * What mean-field theory says of wide random networks, layer by layer: the formulas of `levada.theory`.
 *
 * Everywhere `u = sqrt(q) z` with z standard normal: a pre-activation of variance q. `W` has independent entries of
 * variance `weightVariance / fan_in`, `b` of variance `biasVariance`.
 */

import { type Activation, activation } from "./activation";
import { coherentResidual } from "./coherence";
import { variances } from "./linear";
import type { NetworkOptions } from "./network";

const REACH = 10; // the density beyond is below 1e-22 of its peak
const NODES = 16;
// Standing for the limits 0+ and infinity: every activation is on its tangent or its asymptotes there.
const NEAR_ZERO = 1e-200;
const NEAR_INFINITY = 1e30;
const GROWN = 1e10; // far out an activation has either grown above this or come to its bound

interface Rule {
  readonly z: Float64Array;
  readonly weights: Float64Array;
}

/** Nodes and weights on [-1, 1]: zeros of Legendre's polynomial, by Newton's method from Tricomi's estimate. */
export function gaussLegendre(count: number): Rule {
  const z = new Float64Array(count);
  const weights = new Float64Array(count);
  for (let place = 0; place < count; place++) {
    let x = -Math.cos((Math.PI * (place + 0.75)) / (count + 0.5));
    let slope = 1;
    for (let pass = 0; pass < 8; pass++) {
      let [before, now] = [1, x];
      for (let k = 2; k <= count; k++) [before, now] = [now, ((2 * k - 1) * x * now - (k - 1) * before) / k];
      slope = (count * (x * now - before)) / (x * x - 1);
      x -= now / slope;
    }
    z[place] = x;
    weights[place] = 2 / ((1 - x * x) * slope * slope);
  }
  return { z, weights };
}

const legendre = gaussLegendre(NODES);
const rules = new Map<string, Rule>();

/** Panels of one deviation each, split at the centres and halved towards them until as narrow as `finest`. */
export function normalRule(centres: readonly number[], finest: number): Rule {
  const levels = Math.max(0, Math.ceil(-Math.log2(finest)));
  const key = `${levels} ${centres.join(" ")}`;
  const known = rules.get(key);
  if (known) return known;
  const edges = new Set<number>();
  for (let step = -REACH; step <= REACH; step++) edges.add(step);
  for (const centre of centres) {
    edges.add(centre);
    for (let level = 0; level <= levels; level++) edges.add(centre - 2 ** -level).add(centre + 2 ** -level);
  }
  const sorted = [...edges].filter((edge) => Math.abs(edge) <= REACH).sort((a, b) => a - b);
  const z: number[] = [];
  const weights: number[] = [];
  for (let panel = 1; panel < sorted.length; panel++) {
    const half = (sorted[panel] - sorted[panel - 1]) / 2;
    for (let node = 0; node < NODES; node++) {
      const at = sorted[panel - 1] + half * (1 + legendre.z[node]);
      z.push(at);
      weights.push(half * legendre.weights[node] * Math.exp((-at * at) / 2));
    }
  }
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const rule = { z: Float64Array.from(z), weights: Float64Array.from(weights, (weight) => weight / total) };
  if (rules.size > 256) rules.clear();
  rules.set(key, rule);
  return rule;
}

/** `E[phi(u)]`, `E[phi(u)^2]` and `E[phi'(u)^2]`. */
export interface Moments {
  readonly first: number;
  readonly second: number;
  readonly slope: number;
}

export function moments(phi: Activation, q: number): Moments {
  if (!(q >= 0)) throw new RangeError(`q, the variance of the pre-activation, must be at least 0, got ${q}.`);
  const deviation = Math.sqrt(Math.min(Math.max(q, NEAR_ZERO), NEAR_INFINITY));
  const kinks = phi.kinks.filter((kink) => Math.abs(kink) < 12 * deviation).map((kink) => kink / deviation);
  const { z, weights } = normalRule([0, ...kinks], Math.min(1, 1 / deviation));
  let first = 0;
  let second = 0;
  let slope = 0;
  for (let at = 0; at < z.length; at++) {
    const u = deviation * z[at];
    const value = phi.value(u);
    const steepness = phi.slopeOfValue ? phi.slopeOfValue(value) : phi.slope(u);
    first += weights[at] * value;
    second += weights[at] * value * value;
    slope += weights[at] * steepness * steepness;
  }
  if (q > NEAR_INFINITY && Math.max(...[deviation, -deviation].map((u) => Math.abs(phi.value(u)))) > GROWN) {
    const beyond = Math.sqrt(q / NEAR_INFINITY); // on asymptotes through the origin, as seen from here
    return { first: first * beyond, second: (second / NEAR_INFINITY) * q, slope };
  }
  if (q > 0) return { first, second, slope };
  const resting = phi.value(0);
  return { first: resting, second: resting * resting, slope };
}

/** Variance at each of `depth + 1` boundaries, and each layer's factor on the squared gradient, towards the input. */
export interface Trajectory {
  readonly q: Float64Array;
  readonly chi: Float64Array;
}

/** Natural logarithm of the gradient's root mean square at each boundary over that at the output. */
export function logCumulative(chi: Float64Array): Float64Array {
  const logs = new Float64Array(chi.length + 1);
  for (let layer = chi.length - 1; layer >= 0; layer--) logs[layer] = logs[layer + 1] + Math.log(chi[layer]) / 2;
  return logs;
}

export interface RandomNetwork {
  readonly activation: Activation;
  readonly weightVariance: number;
  readonly biasVariance: number;
  readonly depth: number;
  /** Variance at the first boundary. */
  readonly q0: number;
}

/** Layers `W phi(.) + b`: `q' = sigma_w^2 E[phi^2] + sigma_b^2` and `chi = sigma_w^2 E[phi'^2]`. */
export function propagate({ activation, weightVariance, biasVariance, depth, q0 }: RandomNetwork): Trajectory {
  const q = new Float64Array(depth + 1);
  const chi = new Float64Array(depth);
  q[0] = q0;
  for (let layer = 0; layer < depth; layer++) {
    if (layer > 0 && q[layer] === q[layer - 1]) {
      // A fixed point, of which no later layer leads away.
      q.fill(q[layer], layer);
      chi.fill(chi[layer - 1], layer);
      break;
    }
    const { second, slope } = moments(activation, q[layer]);
    chi[layer] = weightVariance * slope;
    q[layer + 1] = weightVariance * second + biasVariance;
  }
  return { q, chi };
}

/**
 * Residual blocks `h + alpha (W phi(h) + b)`, or with the activation last `h + alpha phi(W h + b)`, whose mean adds up
 * coherently: `q' = q + alpha^2 E[phi^2] + 2 alpha m E[phi]`, with m the stream's mean.
 */
export function propagateResidual(network: RandomNetwork, activationFirst: boolean, alpha = 1): Trajectory {
  const { activation, weightVariance, biasVariance, depth, q0 } = network;
  const q = new Float64Array(depth + 1);
  const chi = new Float64Array(depth);
  q[0] = q0;
  let mean = 0;
  for (let layer = 0; layer < depth; layer++) {
    const inside = activationFirst ? q[layer] : weightVariance * q[layer] + biasVariance;
    const { first, second, slope } = moments(activation, inside);
    chi[layer] = 1 + alpha ** 2 * weightVariance * slope;
    if (activationFirst) {
      q[layer + 1] = q[layer] + alpha ** 2 * (weightVariance * second + biasVariance);
    } else {
      q[layer + 1] = q[layer] + alpha ** 2 * second + 2 * alpha * mean * first;
      mean += alpha * first;
    }
  }
  return { q, chi };
}

/** What the overlay draws, at the boundaries of `Signals`: the gradient is relative to that at the output. */
export interface Prediction {
  readonly signal: Float64Array;
  /** Natural logarithms: they do not underflow. */
  readonly logGradient: Float64Array;
  readonly chi: Float64Array;
}

/**
 * The prediction for a stack whose inputs have a root mean square of `input`; null where theory covers none: other
 * connections than plain and residual, and branches with a normalisation. The gradient at the output is random, so that a
 * share 1/width of it lies along the state.
 */
export function predict(options: NetworkOptions, input = 1): Prediction | null {
  const { connection, norm = "none", preActivation = false, bias = true, depth, width } = options;
  const covered = connection.name === "plain" || connection.name === "residual";
  if (!covered || connection.activation !== undefined || norm !== "none") return null;
  const known = variances(options.init ?? { name: "pytorch_default" }, width);
  const phi = activation(options.activation);
  const [weightVariance, biasVariance] = [known.weight, bias ? known.bias : 0];
  const network = { activation: phi, weightVariance, biasVariance, depth, q0: input * input };
  if (connection.name === "residual") {
    const coherent = preActivation ? null : coherentResidual(network, 1 / width);
    if (coherent) return coherent;
    const { q, chi } = propagateResidual(network, preActivation);
    return { signal: q.map(Math.sqrt), logGradient: logCumulative(chi), chi };
  }
  if (preActivation) {
    const { q, chi } = propagate(network);
    return { signal: q.map(Math.sqrt), logGradient: logCumulative(chi), chi };
  }
  // Boundaries lie behind the activation: q is inside of the blocks.
  const { q, chi } = propagate({ ...network, q0: weightVariance * input * input + biasVariance });
  const signal = new Float64Array(depth + 1);
  signal[0] = input;
  for (let l = 1; l <= depth; l++) {
    const known = l > 1 && q[l - 1] === q[l - 2];
    signal[l] = known ? signal[l - 1] : Math.sqrt(moments(phi, q[l - 1]).second);
  }
  return { signal, logGradient: logCumulative(chi), chi };
}

/** `n log(factor)` for the layers from the output, such as the textbook's 0.25^n: what slopes alone would do. */
export function logPowers(factor: number, depth: number): Float64Array {
  return Float64Array.from({ length: depth + 1 }, (_, layer) => (depth - layer) * Math.log(factor));
}
