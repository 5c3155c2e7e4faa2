/**
 * What the page and the worker say to each other: plain objects that structured cloning takes, arrays transferred.
 *
 * Every request has an id, and gets one last response with it: `configured`, `signals`, `evaluated`, `lesions`, `paths`,
 * `weights`, `preferred`, `remembered`, `done` or `error`. Before `done` there may be `progress`, before `lesions`
 * `counted`. `cancel` gets none of its own: the training that it names ends in `done`, cancelled, and lesions end in `error`.
 */

import type { Floats } from "./matrix";
import type { Mixing } from "./mixing";
import type { NetworkOptions } from "./network";
import type { OptimizerOptions } from "./optimise";
import type { PathLengths } from "./paths";
import type { Memory, MemoryOptions } from "./recurrent/memory";
import type { Prediction } from "./theory";

export interface Data {
  /** `rows x network.inputs`. */
  readonly inputs: Floats;
  /** One class for each row. */
  readonly labels: Int32Array;
}

export type Request =
  | {
      readonly type: "configure";
      readonly id: number;
      readonly network: NetworkOptions;
      readonly optimizer?: OptimizerOptions;
      readonly data?: Data;
      /** Data that no step sees: what `evaluate`, `lesions` and reports of training are measured on. */
      readonly heldOut?: Data;
      /** Rows of a batch; 32 if left out. */
      readonly batch?: number;
    }
  /**
   * One forward and one backward pass: of a batch of the data, or of Gaussian inputs and cotangents. Without `theory`
   * nothing is predicted, which takes longer than the pass.
   */
  | { readonly type: "run"; readonly id: number; readonly theory?: boolean }
  /** `steps` steps of training, with a report after every `every` of them. */
  | { readonly type: "train"; readonly id: number; readonly steps: number; readonly every?: number }
  /**
   * Loss and accuracy on the held-out data, else on all data, of the network or of a lesion: the layers that are run, in
   * order.
   */
  | { readonly type: "evaluate"; readonly id: number; readonly order?: readonly number[] }
  /** The same of all single lesions: without each layer in turn; where `counted`, with word of how many are done. */
  | { readonly type: "lesions"; readonly id: number; readonly counted?: boolean }
  /** Over how many branches the gradient of the loss travels, on a batch of the same data; of a residual network. */
  | { readonly type: "paths"; readonly id: number; readonly rows?: number }
  /** The weight matrices: of what stands before the stack, and of each layer. */
  | { readonly type: "weights"; readonly id: number }
  /** The input that each unit of a layer looks for, at the mean of the data. */
  | { readonly type: "preferred"; readonly id: number; readonly layer: number }
  /** How far back a recurrent layer remembers; no network need be configured. */
  | { readonly type: "remember"; readonly id: number; readonly layer: MemoryOptions }
  | { readonly type: "cancel"; readonly id: number };

/** By layer, see `Signals`; `loss` and `accuracy` of the batch where there are data. */
export interface Measured {
  readonly signal: Float64Array;
  readonly gradient: Float64Array;
  /** Of the gradient by the stack's output, which all connections are given alike. */
  readonly outputGradient: number;
  /** Zero without an optimizer: nothing then needs the gradients of parameters, and they are not computed. */
  readonly weightGradient: Float64Array;
  readonly loss: number | null;
  readonly accuracy: number | null;
}

export interface Evaluation {
  readonly loss: number;
  readonly accuracy: number;
}

export interface WeightMatrix {
  readonly name: string;
  /** Outputs by inputs. */
  readonly rows: number;
  readonly cols: number;
  readonly values: Float64Array;
}

export type Response =
  | { readonly type: "configured"; readonly id: number; readonly parameters: number; readonly dimOut: number }
  | {
      readonly type: "signals";
      readonly id: number;
      readonly measured: Measured;
      /** From the root mean square of this batch at the stack's input; null where theory covers none. */
      readonly predicted: Prediction | null;
      /** What the streams were mixed by; null where nothing is. */
      readonly mixing: Mixing | null;
      /**
       * By layer, the root mean square of what the optimizer's first step with this gradient would change the weight
       * matrix by, over that of the matrix; null without an optimizer, and in training.
       */
      readonly update: Float64Array | null;
      readonly milliseconds: number;
    }
  | {
      readonly type: "progress";
      readonly id: number;
      readonly step: number;
      readonly measured: Measured;
      /** Means over the batches since the last report, each before its step. */
      readonly trained: Evaluation;
      /** After this step; null without held-out data. */
      readonly heldOut: Evaluation | null;
    }
  /** How far a question has come that takes long. */
  | { readonly type: "counted"; readonly id: number; readonly done: number; readonly of: number }
  | ({ readonly type: "evaluated"; readonly id: number } & Evaluation)
  | {
      readonly type: "lesions";
      readonly id: number;
      readonly whole: Evaluation;
      readonly loss: Float64Array;
      readonly accuracy: Float64Array;
    }
  /** Null where the stack is not residual. */
  | { readonly type: "paths"; readonly id: number; readonly paths: PathLengths | null }
  | { readonly type: "weights"; readonly id: number; readonly matrices: readonly WeightMatrix[] }
  /** A row for each unit; null with batch normalisation. */
  | { readonly type: "preferred"; readonly id: number; readonly patterns: WeightMatrix | null }
  | { readonly type: "remembered"; readonly id: number; readonly memory: Memory; readonly milliseconds: number }
  | { readonly type: "done"; readonly id: number; readonly steps: number; readonly cancelled: boolean }
  | { readonly type: "error"; readonly id: number; readonly message: string };

/** The buffers of a response, which are handed over and not copied. */
export function buffers(response: Response): ArrayBuffer[] {
  const found: ArrayBuffer[] = [];
  const collect = (value: unknown): void => {
    if (value instanceof Float64Array) found.push(value.buffer as ArrayBuffer);
    else if (value !== null && typeof value === "object") Object.values(value).forEach(collect);
  };
  collect(response);
  return found;
}
