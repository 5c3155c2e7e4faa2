/** Every connection by name, with the options that levada gives it. */

import { activation } from "../activation";
import type { Precision } from "../matrix";
import { requireInteger } from "../require";
import { AttentionResidual, type AttentionScale, attentionEnds } from "./attention";
import type { Connection, Ends } from "./connection";
import { Dense, denseEnds } from "./dense";
import { LearnedCoefficients } from "./hyper";
import { IdentityCoefficients, ManifoldCoefficients, StreamHead } from "./projected";
import { Highway, Plain, PostNorm, Residual, singleEnds } from "./single";
import { Streams, streamEnds, summingHead } from "./streams";

export type ConnectionOptions =
  | { readonly name: "plain"; readonly activation?: string }
  | { readonly name: "residual"; readonly activation?: string }
  | { readonly name: "post_norm"; readonly alpha?: number; readonly norm?: "layer" | "rms" }
  | { readonly name: "highway"; readonly coupled?: boolean; readonly bias?: number }
  | { readonly name: "dense"; readonly growth: number }
  | {
      readonly name: "hyper";
      readonly streams?: number;
      readonly dynamic?: boolean;
      readonly head?: "sum" | "mean";
      readonly norm?: "layer" | "rms";
    }
  | { readonly name: "manifold"; readonly streams?: number; readonly iterations?: number }
  | { readonly name: "identity"; readonly streams?: number; readonly head?: "learned" | "mean" }
  | { readonly name: "attention"; readonly blockSize?: number; readonly scale?: AttentionScale };

export type ConnectionName = ConnectionOptions["name"];

/** Where a stack's connections are made: its width, depth, precision and seed. */
export interface Place {
  readonly dim: number;
  readonly depth: number;
  readonly precision: Precision;
  readonly seed: number;
}

/** One kind of connection, for all layers of a stack. */
export interface Kind {
  readonly ends: Ends;
  /** Width of what the branch of a layer reads. */
  dimIn(layer: number): number;
  /** Width of what a branch returns. */
  readonly dimBranch: number;
  /** Numbers that the state adds with each layer, for each row. */
  readonly dimState: number;
  /** Width of the stack's output. */
  readonly dimOut: number;
  make(layer: number): Connection;
}

const STREAMS = 4;

export function connections(options: ConnectionOptions, place: Place): Kind {
  const { dim, depth, precision, seed } = place;
  const same = { dimIn: () => dim, dimBranch: dim, dimState: dim, dimOut: dim };
  const named = (layer: number) => `layers.${layer}.connection`;
  switch (options.name) {
    case "plain":
    case "residual": {
      const Chosen = options.name === "plain" ? Plain : Residual;
      const after = options.activation ? activation(options.activation) : null;
      return { ...same, ends: singleEnds, make: () => new Chosen(after) };
    }
    case "post_norm": {
      const { alpha, norm } = options;
      return { ...same, ends: singleEnds, make: (layer) => new PostNorm(named(layer), dim, precision, alpha, norm) };
    }
    case "highway":
      return { ...same, ends: singleEnds, make: (layer) => new Highway(named(layer), dim, precision, seed, options) };
    case "dense": {
      const { growth } = options;
      requireInteger("growth", growth, 1, 1024);
      return {
        ends: denseEnds(dim, depth, growth),
        dimIn: (layer) => dim + layer * growth,
        dimBranch: growth,
        dimState: growth,
        dimOut: dim + depth * growth,
        make: (layer) => new Dense(dim, layer, growth),
      };
    }
    case "attention": {
      requireInteger("blockSize", options.blockSize ?? 1, 1, depth);
      const ends = attentionEnds(dim, precision, options.scale ?? "mean");
      return { ...same, ends, make: (layer) => new AttentionResidual(named(layer), dim, layer, precision, options) };
    }
    case "hyper":
    case "manifold":
    case "identity":
      return { ...same, ...streams(options, place) };
    default:
      throw new RangeError(`connection ${(options as { name: string }).name} is not known.`);
  }
}

type StreamOptions = Extract<ConnectionOptions, { streams?: number }>;

function streams(options: StreamOptions, { dim, precision, seed }: Place): Pick<Kind, "ends" | "dimState" | "make"> {
  const n = options.streams ?? STREAMS;
  requireInteger("streams", n, 2, 16);
  if (options.name === "manifold") requireInteger("iterations", options.iterations ?? 1, 1, 1000);
  const maker = (layer: number) => {
    const name = `layers.${layer}.connection`;
    switch (options.name) {
      case "hyper":
        return new LearnedCoefficients(name, dim, n, layer, precision, options);
      case "manifold":
        return new ManifoldCoefficients(name, dim, n, layer, precision, options);
      case "identity":
        return new IdentityCoefficients(name, dim, n, precision, seed);
    }
  };
  const head = (() => {
    if (options.name === "identity" && (options.head ?? "learned") === "learned") {
      return new StreamHead("output", dim, n, precision, seed);
    }
    const sums = options.name === "hyper" && (options.head ?? "sum") === "sum";
    return summingHead(n, dim, sums ? 1 : 1 / n);
  })();
  return { ends: streamEnds(n, dim, head), dimState: n * dim, make: (layer) => new Streams(dim, n, maker(layer)) };
}
