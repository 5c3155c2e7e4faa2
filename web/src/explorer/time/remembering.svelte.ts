/** Memories of recurrent cells, computed in a worker: the newest settings, what is known already at once. */

import type { Precision } from "../../engine/matrix";
import type { CellName } from "../../engine/recurrent/cells";
import type { Memory, MemoryOptions } from "../../engine/recurrent/memory";
import { PYTORCH_GAIN } from "../../engine/recurrent/unrolled";
import type { Settings } from "../settings";
import type { Worker } from "../train/trainer.svelte";

const INPUTS = 8;
const ROWS = 8;
const MOST_KEPT = 48;

/** PyTorch's own gain where that is what the slider says in three digits. */
function gainOf({ recurrentGain }: Settings): number {
  return Math.abs(recurrentGain - PYTORCH_GAIN) < 5e-4 ? PYTORCH_GAIN : recurrentGain;
}

export function memoryOptions(settings: Settings, cell: CellName): MemoryOptions {
  const { timeSteps: steps, units, forgetBias, orthogonal, precision, seed } = settings;
  const gated = cell === "rnn" ? {} : { forgetBias };
  return {
    cell,
    steps,
    units,
    inputs: INPUTS,
    rows: ROWS,
    gain: gainOf(settings),
    orthogonal,
    precision,
    seed,
    ...gated,
  };
}

export interface Remembered {
  readonly cell: CellName;
  readonly memory: Memory;
  readonly precision: Precision;
}

export class Remembering {
  found = $state.raw<readonly Remembered[]>([]);
  error = $state<string | null>(null);
  computing = $state(false);
  private readonly known = new Map<string, Memory>();
  private generation = 0;
  private busy = false;
  private wanted: Settings | null = null;

  constructor(private readonly worker: Worker) {}

  /** The settings to show; of several in a row only the last are computed. */
  update(settings: Settings): void {
    this.generation++;
    this.wanted = settings;
    if (!this.busy) void this.work();
  }

  close(): void {
    this.generation++;
    this.wanted = null;
    this.worker.close();
  }

  private async work(): Promise<void> {
    this.busy = true;
    while (this.wanted) {
      const settings = this.wanted;
      this.wanted = null;
      await this.compute(settings, this.generation);
    }
    this.busy = false;
    this.computing = false;
  }

  private async compute(settings: Settings, generation: number): Promise<void> {
    const found: Remembered[] = [];
    for (const cell of settings.cells) {
      const layer = memoryOptions(settings, cell);
      const key = JSON.stringify(layer);
      let memory = this.known.get(key);
      if (!memory) {
        this.computing = true;
        try {
          memory = (await this.worker.ask({ type: "remember", layer }, "remembered").answer).memory;
        } catch (error) {
          this.error = error instanceof Error ? error.message : String(error);
          return;
        }
        this.known.set(key, memory);
        if (this.known.size > MOST_KEPT) this.known.delete(this.known.keys().next().value!);
      }
      if (generation !== this.generation) return;
      found.push({ cell, memory, precision: settings.precision });
    }
    this.error = null;
    this.found = found;
  }
}
