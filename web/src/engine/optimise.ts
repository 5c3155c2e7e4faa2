/** Optimizers, with PyTorch's arithmetic and defaults. */

import { type Floats, floats, precisionOf } from "./matrix";
import type { Parameter } from "./module";

export type OptimizerOptions =
  | { readonly name: "sgd"; readonly lr: number; readonly momentum?: number; readonly weightDecay?: number }
  | {
      readonly name: "adamw";
      readonly lr: number;
      readonly betas?: readonly [number, number];
      readonly epsilon?: number;
      readonly weightDecay?: number;
    };

export interface Optimizer {
  /** Change the parameters by their gradients. */
  step(): void;
}

function like(value: Floats): Floats {
  return floats(value.length, precisionOf(value));
}

/** `v = momentum v + g + decay p; p -= lr v`; the first step's v is g + decay p. */
class SGD implements Optimizer {
  private readonly velocities: Floats[];

  constructor(
    private readonly parameters: readonly Parameter[],
    private readonly lr: number,
    private readonly momentum: number,
    private readonly decay: number,
  ) {
    this.velocities = momentum ? parameters.map(({ value }) => like(value)) : [];
  }

  step(): void {
    this.parameters.forEach(({ value, gradient, decays }, place) => {
      const decay = decays ? this.decay : 0;
      const velocity = this.velocities[place];
      for (let i = 0; i < value.length; i++) {
        let change = gradient[i] + decay * value[i];
        if (velocity) {
          change += this.momentum * velocity[i];
          velocity[i] = change;
        }
        value[i] -= this.lr * change;
      }
    });
  }
}

/** `p -= lr decay p; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)`: decay is decoupled. */
class AdamW implements Optimizer {
  private readonly first: Floats[];
  private readonly second: Floats[];
  private steps = 0;

  constructor(
    private readonly parameters: readonly Parameter[],
    private readonly lr: number,
    private readonly betas: readonly [number, number],
    private readonly epsilon: number,
    private readonly decay: number,
  ) {
    this.first = parameters.map(({ value }) => like(value));
    this.second = parameters.map(({ value }) => like(value));
  }

  step(): void {
    this.steps++;
    const [b1, b2] = this.betas;
    const size = this.lr / (1 - b1 ** this.steps);
    const correction = Math.sqrt(1 - b2 ** this.steps);
    this.parameters.forEach(({ value, gradient, decays }, place) => {
      const [m, v] = [this.first[place], this.second[place]];
      const kept = decays ? 1 - this.lr * this.decay : 1;
      for (let i = 0; i < value.length; i++) {
        const g = gradient[i];
        m[i] = b1 * m[i] + (1 - b1) * g;
        v[i] = b2 * v[i] + (1 - b2) * g * g;
        value[i] = kept * value[i] - (size * m[i]) / (Math.sqrt(v[i]) / correction + this.epsilon);
      }
    });
  }
}

export function optimizer(parameters: readonly Parameter[], options: OptimizerOptions): Optimizer {
  if (options.name === "sgd") {
    return new SGD(parameters, options.lr, options.momentum ?? 0, options.weightDecay ?? 0);
  }
  const { lr, betas = [0.9, 0.999], epsilon = 1e-8, weightDecay = 0.01 } = options;
  return new AdamW(parameters, lr, betas, epsilon, weightDecay);
}
