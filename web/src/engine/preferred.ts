/**
 * Which input each unit of a deep layer looks for: the gradient of its pre-activation with respect to the network's input,
 *
 *     P_l[j] = d z_l,j / d x  at the mean input,   z_l = W_l r_l + b_l,
 *
 * where r_l is what the linear part of layer l reads. A small step along P_l[j] raises unit j the most, and where nothing
 * between is curved, P_l is the product of the matrices up to W_l. Of the first layer it is its weights. All units are
 * found by one pass: each row of the batch is the same input, and row j goes back from unit j.
 */

import { type Matrix, matrixFrom, zeros } from "./matrix";
import { zeroGradients } from "./module";
import type { Network } from "./network";
import type { Data, WeightMatrix } from "./protocol";

/** The mean of all rows. */
export function meanInput({ inputs, labels }: Data): Float64Array {
  const cols = inputs.length / labels.length;
  const mean = new Float64Array(cols);
  for (let at = 0; at < inputs.length; at++) mean[at % cols] += inputs[at];
  return mean.map((sum) => sum / labels.length);
}

/**
 * Of a layer, counted from 0: a row of the input's size for each unit.
 *
 * @returns null with batch normalisation, where what a unit does depends on the other rows.
 */
export function preferred(network: Network, input: Float64Array, layer: number): WeightMatrix | null {
  const { norm, precision = "float64" } = network.options;
  const weight = network.stack.weights[layer];
  if (!weight) throw new RangeError(`a layer must be in [0, ${network.stack.weights.length}), got ${layer}.`);
  if (norm === "batch") return null;
  const [units] = weight.shape;
  const same = new Float64Array(units * input.length);
  for (let unit = 0; unit < units; unit++) same.set(input, unit * input.length);
  network.forward(matrixFrom(same, units, input.length, precision));
  const found = network.backwardFromLinear(layer, identity(units, network));
  zeroGradients(network.parameters);
  return { name: weight.name, rows: units, cols: input.length, values: Float64Array.from(found.data) };
}

function identity(size: number, network: Network): Matrix {
  const made = zeros(size, size, network.stack.weights[0].value);
  for (let at = 0; at < size; at++) made.data[at * size + at] = 1;
  return made;
}
