/** Why a connection's curve looks as it does: a sentence for each, with the numbers of the curve itself. */

import type { ConnectionName } from "../engine/connections/index";
import { counted, short } from "../page/number";
import type { Signals } from "./pool";
import type { Settings } from "./settings";

const TELLS = 0.02; // of a factor per layer: less is not worth a sentence

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

/** Empty where the rate says all. */
export function reason(name: ConnectionName, signals: Signals, settings: Settings): string {
  const { signal, gradient, outputGradient } = signals.measured;
  const depth = gradient.length - 1;
  const { streams, growth, gateBias, width, blocks } = settings;
  const last = short(gradient[depth] / outputGradient, 2);
  switch (name) {
    case "plain":
      return "";
    case "residual":
      return coherent(signals, settings);
    case "post_norm":
      return "After each addition the sum is normalised: the signal stays near 1, and what goes past a layer is divided by as much as the sum had grown.";
    case "highway": {
      const open = short(sigmoid(gateBias), 2);
      return `Gates of bias ${short(gateBias)} begin by taking about ${open} of what a layer computes and handing on the rest, so that the last layer gets ${last} of the gradient at the output.`;
    }
    case "dense": {
      const wide = width + depth * growth;
      return `Each layer’s ${counted(growth, "number")} stay in the output, ${wide} wide: each layer gets a gradient from there directly, and from all layers behind it.`;
    }
    case "hyper": {
      const jump = `the signal goes from ${short(signal[depth - 1], 2)} at the last layer to ${short(signal[depth], 2)}`;
      return `The jump at the end is the sum over ${streams} streams, which are alike before training: ${jump}, and a layer, which writes to all of them, gets ${last} times the gradient at the output. It says nothing about depth.`;
    }
    case "manifold":
      return `Its ${streams} streams end in their mean, so that nothing jumps there.`;
    case "identity":
      return `Its ${streams} streams are never mixed, and end in about their mean, so that nothing jumps there.`;
    case "attention": {
      const sources = Math.ceil(depth / Math.ceil(settings.depth / blocks)) + 1;
      return `The output is before training the plain mean of ${sources} sources, the input and sums of layers: each has 1/${sources} of it, and the last layer ${last} of its gradient. A layer reads the mean of those before it.`;
    }
  }
}

/** Where the activation comes last and has a mean, gradients grow faster than independent branches would let them. */
function coherent({ predicted }: Signals, { activation, preActivation, width }: Settings): string {
  if (!predicted || preActivation || predicted.chi.length < 2) return "";
  const { chi, logGradient } = predicted;
  const between = chi.subarray(1);
  const independent = between.reduce((sum, one) => sum + Math.log(one) / 2, 0) / between.length;
  const whole = (logGradient[1] - logGradient[chi.length]) / between.length;
  if (Math.abs(whole - independent) < TELLS) return "";
  return `(Were the gradient independent of the signal, as in layers without end, it would be ${short(Math.exp(independent), 3)}. The outputs of ${activation} have a mean that adds up along the stream; a part of the gradient, 1/${width} of its square at the output, lies along it and grows with it.)`;
}
