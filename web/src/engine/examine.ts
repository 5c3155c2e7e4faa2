/** What a trained network is asked: how well it does, whole and without some layers, and what its weights are. */

import { accuracy, crossEntropy } from "./loss";
import { type Matrix, matrixFrom } from "./matrix";
import { zeroGradients } from "./module";
import type { Network } from "./network";
import { type PathLengths, pathLengths } from "./paths";
import type { Data, Evaluation, WeightMatrix } from "./protocol";

const ROWS_OF_PATHS = 32;

function inputsOf(network: Network, { inputs, labels }: Data, rows = labels.length): Matrix {
  const cols = inputs.length / labels.length;
  return matrixFrom(inputs.subarray(0, rows * cols), rows, cols, network.options.precision ?? "float64");
}

/** Of the network, or of a lesion: the layers that are run, in order. */
export function evaluate(network: Network, data: Data, order?: readonly number[]): Evaluation {
  const x = inputsOf(network, data);
  const outputs = order ? network.lesioned(x, order) : network.forward(x);
  return { loss: crossEntropy(outputs, data.labels).value, accuracy: accuracy(outputs, data.labels) };
}

/**
 * The network without each layer in turn.
 *
 * @param pause is called after each of them with how many are done, and tells whether to go on.
 * @returns null if it was told to end.
 */
export async function lesions(
  network: Network,
  data: Data,
  pause: (done: number) => Promise<boolean>,
): Promise<{ whole: Evaluation; loss: Float64Array; accuracy: Float64Array } | null> {
  const whole = evaluate(network, data);
  const all = Array.from({ length: network.options.depth }, (_, layer) => layer);
  const [loss, right] = [new Float64Array(all.length), new Float64Array(all.length)];
  for (const layer of all) {
    const order = all.filter((other) => other !== layer);
    const found = evaluate(network, data, order);
    loss[layer] = found.loss;
    right[layer] = found.accuracy;
    if (!(await pause(layer + 1))) return null;
  }
  return { whole, loss, accuracy: right };
}

/** Of the gradient of the loss on the first rows; null where the layers are not `h + branch(h)`. */
export function paths(network: Network, data: Data, rows = ROWS_OF_PATHS): PathLengths | null {
  const { connection, seed } = network.options;
  if (connection.name !== "residual" || connection.activation !== undefined) return null;
  const count = Math.min(rows, data.labels.length);
  const outputs = network.forward(inputsOf(network, data, count));
  const found = crossEntropy(outputs, data.labels.subarray(0, count));
  const cotangent = network.backwardToStack(found.gradient);
  const lengths = pathLengths(network.stack.branches, cotangent, { seed: seed ?? 0 });
  zeroGradients(network.parameters);
  return lengths;
}

/** The first layer's, and that of the linear part of each layer's branch. */
export function weights(network: Network): WeightMatrix[] {
  const linear = /^(stem|layers\.\d+\.branch\.linear)\.weight$/;
  const found = network.parameters.filter(({ name }) => linear.test(name));
  return found.map(({ name, shape: [rows, cols], value }) => ({ name, rows, cols, values: Float64Array.from(value) }));
}
