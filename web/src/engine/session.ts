/** What a worker does with the requests it gets; it knows neither the page nor the worker. */

import { evaluate, lesions, paths, weights } from "./examine";
import { within } from "./kernels";
import { Layers } from "./layers";
import { accuracy, crossEntropy } from "./loss";
import { type Floats, floats, type Matrix, type Precision, rms, unwritten } from "./matrix";
import { type Parameter, requireGradients, zeroGradients } from "./module";
import { Network } from "./network";
import { type Optimizer, type OptimizerOptions, optimizer } from "./optimise";
import { meanInput, preferred } from "./preferred";
import type { Data, Measured, Request, Response } from "./protocol";
import { Random } from "./random";
import { type MemoryOptions, remember } from "./recurrent/memory";
import { requireInteger } from "./require";
import { predict } from "./theory";

const BATCH = 32;
const MOST_KEPT = 2 ** 27; // numbers: 1 GB in float64
const SLICE = 16; // milliseconds of training after which other requests may come in

interface Configured {
  readonly network: Network;
  readonly optimizer: Optimizer | null;
  readonly chosen: OptimizerOptions | null;
  readonly data: Data | null;
  readonly heldOut: Data | null;
  readonly batch: number;
  readonly precision: Precision;
  /** Which rows make the next batch. */
  readonly rows: Random;
}

type Configure = Extract<Request, { type: "configure" }>;

export class Session {
  private configured: Configured | null = null;
  private training: { id: number; cancelled: boolean } | null = null;
  private readonly layers = new Layers();
  private readonly lesioning = new Map<number, { cancelled: boolean }>();

  /**
   * @param post sends a response.
   * @param pause lets other requests come in, such as one that cancels.
   */
  constructor(
    private readonly post: (response: Response) => void,
    private readonly pause: () => Promise<void>,
  ) {}

  /** Answer a request; what is wrong with it is answered too, and leaves everything as it was. */
  async receive(request: Request): Promise<void> {
    const { id } = request;
    try {
      switch (request.type) {
        case "configure":
          this.configure(request);
          break;
        case "run":
          this.run(id, request.theory ?? true);
          break;
        case "train":
          await this.train(id, request.steps, request.every ?? 1);
          break;
        case "evaluate":
          this.post({ type: "evaluated", id, ...evaluate(this.require().network, this.tested(), request.order) });
          break;
        case "lesions":
          await this.lesions(id, request.counted ?? false);
          break;
        case "paths":
          this.post({ type: "paths", id, paths: paths(this.require().network, this.tested(), request.rows) });
          break;
        case "weights":
          this.post({ type: "weights", id, matrices: weights(this.require().network) });
          break;
        case "preferred":
          this.prefer(id, request.layer);
          break;
        case "remember":
          this.remember(id, request.layer);
          break;
        case "cancel":
          for (const one of [this.training?.id === id ? this.training : null, this.lesioning.get(id)]) {
            if (one) one.cancelled = true;
          }
          break;
      }
    } catch (error) {
      this.post({ type: "error", id, message: error instanceof Error ? error.message : String(error) });
    }
  }

  /** Make a network in the place of the one before; a training of that one ends. */
  private configure({ id, network: options, optimizer: chosen, data, heldOut, batch = BATCH }: Configure): void {
    requireInteger("batch", batch, 1, 4096);
    for (const given of [data, heldOut]) if (given) requireData(given, options.inputs, options.classes);
    const network = new Network(options, chosen ? undefined : this.layers);
    if (network.stack.kept * batch > MOST_KEPT) {
      throw new RangeError("this network keeps too much for its backward pass: take fewer layers, features or rows.");
    }
    // Whoever does not step needs no gradient by what is learned, a third of a pass.
    requireGradients(network.parameters, chosen !== undefined);
    if (this.training) this.training.cancelled = true;
    this.training = null;
    this.configured = {
      network,
      optimizer: chosen ? optimizer(network.parameters, chosen) : null,
      chosen: chosen ?? null,
      data: data ?? null,
      heldOut: heldOut ?? null,
      batch,
      precision: options.precision ?? "float64",
      rows: new Random(options.seed ?? 0, "batches"),
    };
    const parameters = network.parameters.reduce((total, { value }) => total + value.length, 0);
    this.post({ type: "configured", id, parameters, dimOut: network.stack.dimOut });
  }

  private run(id: number, theory: boolean): void {
    const configured = this.require();
    const { network, chosen, data } = configured;
    const start = performance.now();
    const { measured, mixing } = within(() => ({ measured: pass(configured), mixing: network.stack.mixing() }));
    const milliseconds = performance.now() - start;
    const predicted = theory ? predict(network.options, measured.signal[0]) : null;
    const update = chosen && !data ? firstUpdate(network.stack.weights, chosen) : null;
    this.post({ type: "signals", id, measured, predicted, mixing, update, milliseconds });
  }

  private async lesions(id: number, counted: boolean): Promise<void> {
    const configured = this.require();
    const of = configured.network.options.depth;
    const own = { cancelled: false };
    this.lesioning.set(id, own);
    let resumed = performance.now();
    try {
      const found = await lesions(configured.network, this.tested(), async (done) => {
        if (performance.now() - resumed > SLICE) {
          if (counted) this.post({ type: "counted", id, done, of });
          await this.pause();
          resumed = performance.now();
        }
        return this.configured === configured && !own.cancelled;
      });
      if (!found) throw new Error(own.cancelled ? "it was cancelled." : "another network has taken this one's place.");
      this.post({ type: "lesions", id, ...found });
    } finally {
      this.lesioning.delete(id);
    }
  }

  private remember(id: number, layer: MemoryOptions): void {
    const start = performance.now();
    const memory = remember(layer);
    this.post({ type: "remembered", id, memory, milliseconds: performance.now() - start });
  }

  private prefer(id: number, layer: number): void {
    const { network, data } = this.require();
    this.post({ type: "preferred", id, patterns: preferred(network, meanInput(data ?? this.tested()), layer) });
  }

  /** What the network is tested on. */
  private tested(): Data {
    const { data, heldOut } = this.require();
    const found = heldOut ?? data;
    if (!found) throw new Error("to evaluate, configure data.");
    return found;
  }

  private async train(id: number, steps: number, every: number): Promise<void> {
    const configured = this.require();
    const { optimizer: steppedBy, data, heldOut, network } = configured;
    if (!steppedBy || !data) throw new Error("to train, configure an optimizer and data.");
    if (this.training) throw new Error(`training ${this.training.id} is still running; cancel it first.`);
    const training = { id, cancelled: false };
    this.training = training;
    let step = 0;
    let since = { loss: 0, accuracy: 0, count: 0 };
    let resumed = performance.now();
    try {
      while (step < steps && !training.cancelled) {
        const measured = within(() => pass(configured));
        steppedBy.step();
        step++;
        since = {
          loss: since.loss + measured.loss!,
          accuracy: since.accuracy + measured.accuracy!,
          count: since.count + 1,
        };
        if (step % every === 0 || step === steps) {
          const trained = { loss: since.loss / since.count, accuracy: since.accuracy / since.count };
          const tested = heldOut && evaluate(network, heldOut);
          this.post({ type: "progress", id, step, measured, trained, heldOut: tested });
          since = { loss: 0, accuracy: 0, count: 0 };
        }
        if (performance.now() - resumed > SLICE) {
          await this.pause();
          resumed = performance.now();
        }
      }
    } finally {
      if (this.training === training) this.training = null; // else another network has taken its place
    }
    this.post({ type: "done", id, steps: step, cancelled: step < steps });
  }

  private require(): Configured {
    if (!this.configured) throw new Error("configure a network first.");
    return this.configured;
  }
}

/** One forward and one backward pass of the next batch. */
function pass({ network, data, batch, precision, rows }: Configured): Measured {
  const { inputs, width } = network.options;
  zeroGradients(network.parameters);
  let loss: number | null = null;
  let right: number | null = null;
  if (data) {
    const { x, labels } = nextBatch(data, batch, inputs!, precision, rows);
    const outputs = network.forward(x);
    const found = crossEntropy(outputs, labels);
    loss = found.value;
    right = accuracy(outputs, labels);
    network.backward(found.gradient);
  } else {
    const outputs = network.forward(gaussian(batch, inputs ?? width, precision, rows));
    network.backward(gaussian(batch, outputs.cols, precision, rows));
  }
  const { signal, gradient, outputGradient, weightGradient } = network.stack.signals;
  return {
    signal: signal.slice(),
    gradient: gradient.slice(),
    outputGradient,
    weightGradient: weightGradient.slice(),
    loss,
    accuracy: right,
  };
}

/** See `signals.update`: the weights are put back, and the optimizer's own moments are not touched. */
function firstUpdate(weights: readonly Parameter[], options: OptimizerOptions): Float64Array {
  const before = weights.map(({ value }) => value.slice());
  optimizer(weights, options).step();
  return Float64Array.from(weights, ({ value }, layer) => {
    const change = Float64Array.from(value, (now, i) => now - before[layer][i]);
    value.set(before[layer]);
    return rms(change) / rms(value);
  });
}

function gaussian(rows: number, cols: number, precision: Precision, random: Random): Matrix {
  const x = unwritten(rows, cols, floats(0, precision));
  random.fillNormal(x.data, 1);
  return x;
}

/** Rows drawn with replacement. */
function nextBatch(
  { inputs, labels }: Data,
  batch: number,
  cols: number,
  precision: Precision,
  random: Random,
): { x: Matrix; labels: Int32Array } {
  const data: Floats = floats(batch * cols, precision);
  const drawn = new Int32Array(batch);
  for (let i = 0; i < batch; i++) {
    const row = random.below(labels.length);
    data.set(inputs.subarray(row * cols, (row + 1) * cols), i * cols);
    drawn[i] = labels[row];
  }
  return { x: { data, rows: batch, cols }, labels: drawn };
}

function requireData({ inputs, labels }: Data, cols: number | undefined, classes: number | undefined): void {
  if (cols === undefined || classes === undefined) throw new Error("with data, give the network's inputs and classes.");
  if (labels.length === 0 || inputs.length !== labels.length * cols) {
    throw new Error(
      `${labels.length} rows of ${cols} inputs need ${labels.length * cols} numbers, got ${inputs.length}.`,
    );
  }
}
