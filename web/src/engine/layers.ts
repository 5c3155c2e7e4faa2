/** The layers of a stack: a connection with its branch, made anew or taken from stacks that nobody trained. */

import { activation } from "./activation";
import type { Connection } from "./connections/connection";
import type { Kind } from "./connections/index";
import { Linear } from "./linear";
import { Activate, type Module, Sequential } from "./module";
import type { NetworkOptions } from "./network";
import { normalisation } from "./normalise";

export interface Layer {
  readonly connection: Connection;
  readonly branch: Module;
  readonly linear: Linear;
}

export function makeLayer(kind: Kind, layer: number, options: NetworkOptions): Layer {
  const { norm = "none", preActivation = false, bias = true, precision = "float64" } = options;
  const { init = { name: "pytorch_default" }, seed = 0 } = options;
  const [dimIn, dimOut] = [kind.dimIn(layer), kind.dimBranch];
  const name = `layers.${layer}.branch`;
  const linear = new Linear(`${name}.linear`, dimIn, dimOut, precision, { bias, init, seed });
  const around: Module[] =
    norm === "none" ? [] : [normalisation(norm, `${name}.norm`, preActivation ? dimIn : dimOut, precision)];
  around.push(new Activate(activation(options.activation)));
  const branch = new Sequential(preActivation ? [...around, linear] : [linear, ...around]);
  return { connection: kind.make(layer), branch, linear };
}

const MOST_KEPT = 2 ** 22; // numbers: 32 MB in float64

interface Row {
  readonly layers: Layer[];
  /** What the weights of each layer were drawn with. */
  readonly drawn: string[];
  /** Numbers of all of them. */
  size: number;
}

/**
 * Layers of stacks that nobody trains, by what they are made of, for one stack at a time: another depth takes the same
 * ones, and another initialisation the same ones with other weights.
 */
export class Layers {
  private readonly rows = new Map<string, Row>();

  /** The first `depth` of them. */
  of(kind: Kind, options: NetworkOptions): readonly Layer[] {
    const { depth, init, inputs: _, classes: __, ...same } = options;
    const key = JSON.stringify(same);
    const row = this.rows.get(key) ?? { layers: [], drawn: [], size: 0 };
    this.rows.delete(key);
    const weights = JSON.stringify(init);
    for (let place = 0; place < depth; place++) {
      if (place === row.layers.length) {
        const made = makeLayer(kind, place, options);
        row.layers.push(made);
        const parameters = [...made.connection.parameters, ...made.branch.parameters];
        row.size += parameters.reduce((total, { value }) => total + value.length, 0);
      } else if (row.drawn[place] !== weights) {
        row.layers[place].linear.draw(init);
      }
      row.drawn[place] = weights;
    }
    this.keep(key, row);
    return row.layers.slice(0, depth);
  }

  /** Newest last; the oldest go where they are too many. */
  private keep(key: string, row: Row): void {
    this.rows.set(key, row);
    let size = 0;
    for (const one of this.rows.values()) size += one.size;
    for (const [oldest, { size: own }] of this.rows) {
      if (size <= MOST_KEPT) return;
      this.rows.delete(oldest);
      size -= own;
    }
  }
}
