/** The gradient on its way from the output to the input, layer by layer. */

const PER_LAYER = 60; // milliseconds
const LEAST = 1500;
const MOST = 6000;
const STEPS = 10; // of those who want no motion

/** Nothing moves for those who asked for no motion: they press the button for each step. */
function still(): boolean {
  return !window.matchMedia("(prefers-reduced-motion: no-preference)").matches;
}

export class Travel {
  /** The layer that the gradient has come to; null where it does not travel. */
  front = $state<number | null>(null);
  moving = $state(false);
  private frame = 0;

  /** @param arrive is called with each layer that is reached. */
  constructor(private readonly arrive: (layer: number) => void) {}

  /** What the button does. */
  get action(): "Play" | "Step" | "Stop" {
    if (this.moving) return "Stop";
    return this.front === null ? "Play" : "Step";
  }

  /** Begin at the output; stop where it moves; go a step on where nothing may move. */
  toggle(depth: number): void {
    if (this.moving) this.stop();
    else if (still()) this.step(depth);
    else this.go(depth);
  }

  private go(depth: number): void {
    const lasts = Math.min(Math.max(depth * PER_LAYER, LEAST), MOST);
    this.moving = true;
    this.reach(depth);
    let began: number | null = null;
    const advance = (now: number) => {
      began ??= now;
      const share = (now - began) / lasts;
      if (share >= 1) {
        this.stop();
        this.arrive(0);
        return;
      }
      this.reach(Math.round(depth * (1 - share)));
      this.frame = requestAnimationFrame(advance);
    };
    this.frame = requestAnimationFrame(advance);
  }

  stop(): void {
    cancelAnimationFrame(this.frame);
    this.moving = false;
    this.front = null;
  }

  private step(depth: number): void {
    if (this.front === 0) this.stop();
    else this.reach(this.front === null ? depth : Math.max(0, this.front - Math.ceil(depth / STEPS)));
  }

  private reach(layer: number): void {
    if (layer === this.front) return;
    this.front = layer;
    this.arrive(layer);
  }
}
