/** Losses: means over the batch, as PyTorch's. */

import { type Matrix, zeros } from "./matrix";

export interface Loss {
  readonly value: number;
  /** By the network's outputs. */
  readonly gradient: Matrix;
}

/** `-mean_i log softmax(outputs_i)[labels_i]`. */
export function crossEntropy(outputs: Matrix, labels: Int32Array): Loss {
  const { rows, cols, data } = outputs;
  if (labels.length !== rows) throw new RangeError(`${rows} outputs need as many labels, got ${labels.length}.`);
  const gradient = zeros(rows, cols, data);
  let total = 0;
  for (let i = 0, start = 0; i < rows; i++, start += cols) {
    const label = labels[i];
    if (!(label >= 0 && label < cols)) throw new RangeError(`a label must be in [0, ${cols}), got ${label}.`);
    let largest = Number.NEGATIVE_INFINITY;
    for (let j = 0; j < cols; j++) largest = Math.max(largest, data[start + j]);
    let sum = 0;
    for (let j = 0; j < cols; j++) sum += Math.exp(data[start + j] - largest);
    total += Math.log(sum) + largest - data[start + label];
    for (let j = 0; j < cols; j++) {
      const share = Math.exp(data[start + j] - largest) / sum;
      gradient.data[start + j] = (share - (j === label ? 1 : 0)) / rows;
    }
  }
  return { value: total / rows, gradient };
}

/** The mean of all squared differences. */
export function meanSquare(outputs: Matrix, targets: Matrix): Loss {
  const { rows, cols, data } = outputs;
  if (targets.data.length !== data.length) throw new RangeError("targets must have the outputs' shape.");
  const gradient = zeros(rows, cols, data);
  let total = 0;
  for (let i = 0; i < data.length; i++) {
    const difference = data[i] - targets.data[i];
    total += difference * difference;
    gradient.data[i] = (2 * difference) / data.length;
  }
  return { value: total / data.length, gradient };
}

/** The share of rows whose largest output is the label's. */
export function accuracy(outputs: Matrix, labels: Int32Array): number {
  let right = 0;
  for (let i = 0; i < outputs.rows; i++) {
    let best = 0;
    for (let j = 1; j < outputs.cols; j++) {
      if (outputs.data[i * outputs.cols + j] > outputs.data[i * outputs.cols + best]) best = j;
    }
    if (best === labels[i]) right++;
  }
  return right / outputs.rows;
}
