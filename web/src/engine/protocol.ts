/**
 * What the page and the worker say to each other: plain objects that structured cloning takes, arrays transferred.
 *
 * Every request has an id, and gets one last response with it: `configured`, `signals`, `evaluated`, `done` or `error`. Before `done`
 * there may be `progress`. `cancel` gets none of its own: the training that it names ends in `done`, cancelled.
 */

import type { Floats } from "./matrix";
import type { Mixing } from "./mixing";
import type { NetworkOptions } from "./network";
import type { OptimizerOptions } from "./optimise";
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
      /** Rows of a batch; 32 if left out. */
      readonly batch?: number;
    }
  /** One forward and one backward pass: of a batch of the data, or of Gaussian inputs and cotangents. */
  | { readonly type: "run"; readonly id: number }
  /** `steps` steps of training, with a report after every `every` of them. */
  | { readonly type: "train"; readonly id: number; readonly steps: number; readonly every?: number }
  /** Loss and accuracy on all data, of the network or of a lesion: the layers that are run, in order. */
  | { readonly type: "evaluate"; readonly id: number; readonly order?: readonly number[] }
  | { readonly type: "cancel"; readonly id: number };

/** By layer, see `Signals`; `loss` and `accuracy` of the batch where there are data. */
export interface Measured {
  readonly signal: Float64Array;
  readonly gradient: Float64Array;
  readonly weightGradient: Float64Array;
  readonly loss: number | null;
  readonly accuracy: number | null;
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
  | { readonly type: "progress"; readonly id: number; readonly step: number; readonly measured: Measured }
  | { readonly type: "evaluated"; readonly id: number; readonly loss: number; readonly accuracy: number }
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
