/** A stack of fully connected branches, each behind a connection: what `levada.Stack` of `FullyConnected` is. */

import type { Ends, State } from "./connections/connection";
import { type ConnectionOptions, connections } from "./connections/index";
import { type Layer, type Layers, makeLayer } from "./layers";
import { type Initialisation, Linear } from "./linear";
import { type Matrix, type Precision, rms, withSize, zeros } from "./matrix";
import { type Mixing, mixingOverDepth } from "./mixing";
import { type Module, type Parameter, Sequential } from "./module";
import type { NormName } from "./normalise";
import { requireInteger, requireOneOf } from "./require";

export interface NetworkOptions {
  readonly depth: number;
  readonly width: number;
  readonly connection: ConnectionOptions;
  readonly activation: string;
  readonly norm?: NormName | "none";
  /** `W activation(norm(x)) + b` instead of `activation(norm(W x + b))`. */
  readonly preActivation?: boolean;
  readonly bias?: boolean;
  readonly init?: Initialisation;
  readonly precision?: Precision;
  readonly seed?: number;
  /** For training: a linear layer from inputs to the stack's width, and one from its output to classes. */
  readonly inputs?: number;
  readonly classes?: number;
}

export const MAX_DEPTH = 1000;
export const MAX_WIDTH = 1024;
const MAX_INPUTS = 4096;
const MAX_WEIGHTS = 2 ** 25; // with their gradients half a gigabyte in float64

/**
 * Root mean squares by layer; both arrays have one entry more than there are layers.
 *
 * The signal is what each branch reads, and last what the stack returns. The gradient is first by the stack's input, and
 * then by what each branch returns, which is what its weights learn from. For plain and residual stacks both are those of
 * the stream at each boundary.
 */
export interface Signals {
  readonly signal: Float64Array;
  readonly gradient: Float64Array;
  /** Of the gradient that the stack's output was given. */
  outputGradient: number;
  /** Of the gradient by each layer's weight matrix; zero where it requires none. */
  readonly weightGradient: Float64Array;
}

/** The layers alone, without what stands before and after them. */
export class Stack implements Module {
  readonly parameters: readonly Parameter[];
  readonly dimOut: number;
  /** About how many numbers a forward pass keeps for each row. */
  readonly kept: number;
  readonly signals: Signals;
  /** The weight matrix of each layer's branch. */
  readonly weights: readonly Parameter[];
  private readonly layers: readonly Layer[];
  private readonly ends: Ends;

  /** @param known layers that nobody trains, of which those that fit are taken. */
  constructor(
    private readonly options: NetworkOptions,
    known?: Layers,
  ) {
    const { depth, width, precision = "float64", norm = "none" } = options;
    requireInteger("depth", depth, 1, MAX_DEPTH);
    requireInteger("width", width, 1, MAX_WIDTH);
    requireOneOf("precision", precision, ["float32", "float64"]);
    requireOneOf("norm", norm, ["none", "layer", "rms", "batch"]);
    const kind = connections(options.connection, { dim: width, depth, precision, seed: options.seed ?? 0 });
    this.ends = kind.ends;
    this.dimOut = kind.dimOut;
    // What the linear layer and the activation read; a normalisation keeps what it returns too, before and after weights.
    const copies = norm === "none" ? 2 : 4;
    const perLayer = (layer: number) => copies * Math.max(kind.dimIn(layer), kind.dimBranch) + 2 * kind.dimState;
    this.kept = summed(depth, perLayer);
    if (summed(depth, (layer) => kind.dimIn(layer) * kind.dimBranch) > MAX_WEIGHTS) {
      throw new RangeError(`a network has ${MAX_WEIGHTS} weights at most: take fewer layers or features.`);
    }
    this.layers =
      known?.of(kind, options) ?? Array.from({ length: depth }, (_, layer) => makeLayer(kind, layer, options));
    const own = this.layers.flatMap(({ connection, branch }) => [...connection.parameters, ...branch.parameters]);
    this.parameters = [...own, ...this.ends.parameters];
    this.weights = this.layers.map(({ linear }) => linear.weight);
    this.signals = {
      signal: new Float64Array(depth + 1),
      gradient: new Float64Array(depth + 1),
      outputGradient: 0,
      weightGradient: new Float64Array(depth),
    };
  }

  forward(x: Matrix): Matrix {
    const { signal } = this.signals;
    let state: State = this.ends.begin(x);
    this.layers.forEach(({ connection, branch }, place) => {
      const given = connection.read(state);
      const size = rms(given.data);
      signal[place] = size;
      const written = withSize(size, () => branch.forward(given));
      state = connection.write(state, written);
    });
    const y = this.ends.end(state);
    signal[this.layers.length] = rms(y.data);
    return y;
  }

  /** The same without some layers, or with layers in another order; nothing is measured, and no backward pass follows. */
  lesioned(x: Matrix, order: readonly number[]): Matrix {
    let state: State = this.ends.begin(x);
    for (const place of order) {
      const layer = this.layers[place];
      if (!layer) throw new RangeError(`a layer must be in [0, ${this.layers.length}), got ${place}.`);
      state = layer.connection.write(state, layer.branch.forward(layer.connection.read(state)));
    }
    return this.ends.end(state);
  }

  /** The layers' branches, in order; each keeps what its own backward pass needs. */
  get branches(): readonly Module[] {
    return this.layers.map(({ branch }) => branch);
  }

  /** What the last forward pass mixed, layer by layer; null where nothing mixes streams. */
  mixing(): Mixing | null {
    const mixes = this.layers.flatMap(({ connection }) => connection.mixing?.() ?? []);
    return mixes.length > 0 ? mixingOverDepth(mixes) : null;
  }

  backward(gradient: Matrix): Matrix {
    const measured = this.signals;
    measured.outputGradient = rms(gradient.data);
    let state = this.ends.endBackward(gradient);
    for (let place = this.layers.length - 1; place >= 0; place--) {
      const { connection, branch, linear } = this.layers[place];
      const byOutput = connection.writeBackward(state);
      const size = rms(byOutput.data);
      measured.gradient[place + 1] = size;
      const byInput = withSize(size, () => branch.backward(byOutput));
      state = connection.readBackward(byInput);
      if (linear.weight.requiresGradient) measured.weightGradient[place] = rms(linear.weight.gradient);
    }
    const byInput = this.ends.beginBackward(state);
    measured.gradient[0] = rms(byInput.data);
    return byInput;
  }

  /** After a forward pass: the gradient by the input, of what the linear part of one layer returned. */
  backwardFromLinear(layer: number, gradient: Matrix): Matrix {
    const first = !(this.options.preActivation ?? false);
    // What lies behind the layer has no part in it: a gradient of zero goes back to there.
    let state = this.ends.endBackward(zeros(gradient.rows, this.dimOut, gradient.data));
    for (let place = this.layers.length - 1; place >= 0; place--) {
      const { connection, branch, linear } = this.layers[place];
      const byOutput = connection.writeBackward(state);
      const begins = place === layer ? (first ? linear : branch).backward(gradient) : branch.backward(byOutput);
      state = connection.readBackward(begins);
    }
    return this.ends.beginBackward(state);
  }
}

function summed(depth: number, part: (layer: number) => number): number {
  let total = 0;
  for (let layer = 0; layer < depth; layer++) total += part(layer);
  return total;
}

/** A stack, with linear layers before and after it where `inputs` and `classes` are given. */
export class Network implements Module {
  readonly parameters: readonly Parameter[];
  readonly stack: Stack;
  private readonly whole: Module;
  private readonly stem: Module;
  private readonly head: Module;

  /** @param known see `Stack`. */
  constructor(
    readonly options: NetworkOptions,
    known?: Layers,
  ) {
    const { inputs, classes, width, precision = "float64", seed = 0 } = options;
    this.stack = new Stack(options, known);
    if (inputs !== undefined) requireInteger("inputs", inputs, 1, MAX_INPUTS);
    if (classes !== undefined) requireInteger("classes", classes, 2, MAX_WIDTH);
    this.stem = new Sequential(inputs === undefined ? [] : [new Linear("stem", inputs, width, precision, { seed })]);
    const { dimOut } = this.stack;
    this.head = new Sequential(classes === undefined ? [] : [new Linear("head", dimOut, classes, precision, { seed })]);
    this.whole = new Sequential([this.stem, this.stack, this.head]);
    this.parameters = this.whole.parameters;
  }

  forward(x: Matrix): Matrix {
    return this.whole.forward(x);
  }

  backward(gradient: Matrix): Matrix {
    return this.whole.backward(gradient);
  }

  /** Return the gradient by the stack's output alone. */
  backwardToStack(gradient: Matrix): Matrix {
    return this.head.backward(gradient);
  }

  /** See `Stack.backwardFromLinear`: by the network's input. */
  backwardFromLinear(layer: number, gradient: Matrix): Matrix {
    return this.stem.backward(this.stack.backwardFromLinear(layer, gradient));
  }

  /** See `Stack.lesioned`. */
  lesioned(x: Matrix, order: readonly number[]): Matrix {
    return this.head.forward(this.stack.lesioned(this.stem.forward(x), order));
  }
}
