/** What pointers do over a figure: one drags it, two pinch it, one that hardly moves chooses a place. */

export interface Pointing {
  readonly id: number;
  /** Pixels from the figure's left and upper edge. */
  readonly x: number;
  readonly y: number;
}

export interface Moves {
  /** By how many pixels the picture is dragged. */
  pan(x: number, y: number): void;
  /** By which factor the seen stretch changes, about a place. */
  zoom(factor: number, x: number, y: number): void;
  choose(x: number, y: number): void;
}

const STILL = 5; // pixels that a finger trembles

export class Gestures {
  private readonly down = new Map<number, Pointing>();
  private start: Pointing | null = null;
  private moved = false;

  constructor(private readonly moves: Moves) {}

  get dragging(): boolean {
    return this.moved && this.down.size > 0;
  }

  press(at: Pointing): void {
    this.down.set(at.id, at);
    this.start = this.down.size === 1 ? at : null;
    this.moved = this.down.size > 1;
  }

  move(at: Pointing): void {
    const before = this.down.get(at.id);
    if (!before) return;
    if (this.down.size === 1) {
      if (!this.moved && this.start && Math.hypot(at.x - this.start.x, at.y - this.start.y) < STILL) return;
      this.moved = true;
      this.down.set(at.id, at);
      this.moves.pan(at.x - before.x, at.y - before.y);
      return;
    }
    const other = [...this.down.values()].find(({ id }) => id !== at.id)!;
    this.down.set(at.id, at);
    const [was, is] = [before, at].map((one) => Math.max(Math.hypot(one.x - other.x, one.y - other.y), 1));
    this.moves.pan((at.x - before.x) / 2, (at.y - before.y) / 2);
    this.moves.zoom(was / is, (at.x + other.x) / 2, (at.y + other.y) / 2);
  }

  lift(at: Pointing): void {
    const known = this.down.delete(at.id);
    if (known && !this.moved && this.start?.id === at.id) this.moves.choose(at.x, at.y);
    if (this.down.size === 0) this.moved = false;
  }

  cancel(id: number): void {
    this.down.delete(id);
    if (this.down.size === 0) this.moved = false;
  }
}

interface Turn {
  readonly deltaY: number;
  readonly deltaMode: number;
  readonly ctrlKey: boolean;
}

/** By which factor a turn of the wheel changes what is seen; a line is 16 pixels, a page 400. */
export function wheelFactor(event: Turn): number {
  const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
  // Two fingers on a touch pad come as a wheel with the control key, in small numbers.
  return Math.exp(Math.max(-0.7, Math.min(0.7, pixels * (event.ctrlKey ? 0.01 : 0.0015))));
}
