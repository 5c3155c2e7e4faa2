/**
 * The connection protocol of levada, with its backward pass: how a layer reads from, and writes to, what the layers
 * before it left.
 *
 *     state = begin(x);   (read -> branch -> write) x depth;   y = end(state)
 *
 * Backward, in reverse: `writeBackward` takes the gradient by the new state, gives the one by the branch's output, and
 * keeps what belongs to the old state; `readBackward` takes the gradient by what the branch read, and returns the sum.
 */

import type { Matrix } from "../matrix";
import type { LayerMix } from "../mixing";
import type { Parameter } from "../module";

/** One stream, n streams side by side, a buffer of features or a list of outputs: its connection knows. */
export type State = readonly Matrix[];

export interface Connection {
  readonly parameters: readonly Parameter[];
  read(state: State): Matrix;
  write(state: State, out: Matrix): State;
  writeBackward(gradient: State): Matrix;
  readBackward(gradient: Matrix): State;
  /** The matrices that mixed the streams in the last forward pass; null where nothing mixes. */
  mixing?(): LayerMix | null;
}

/** How a stack begins, and what follows its last layer. */
export interface Ends {
  readonly parameters: readonly Parameter[];
  begin(x: Matrix): State;
  beginBackward(gradient: State): Matrix;
  end(state: State): Matrix;
  /** Its result is the stack's own: layers may add to it. */
  endBackward(gradient: Matrix): State;
}
