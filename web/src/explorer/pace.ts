/** When to draw while more is to come: soon, and yet so that drawing takes half of the time at most. */

export class Pace {
  private timer: ReturnType<typeof setTimeout> | null = null;
  private frame = 0;
  /** Until when to wait: since the last frame as long as that took. */
  private rested = 0;

  constructor(private readonly draw: () => void) {}

  /** In the next frame, or the first one after a rest. */
  soon(): void {
    if (this.timer || this.frame) return;
    const wait = this.rested - performance.now();
    const later = () => {
      this.timer = null;
      this.request();
    };
    if (wait <= 0) this.request();
    else this.timer = setTimeout(later, wait);
  }

  /** At once, and what was to be drawn soon with it. */
  now(): void {
    if (this.timer) clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    this.timer = null;
    this.frame = 0;
    this.draw();
  }

  private request(): void {
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const start = performance.now();
      this.draw();
      // A message's turn comes when the frame has been painted.
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => {
        port1.close();
        const end = performance.now();
        this.rested = end + (end - start);
      };
      port2.postMessage(null);
    });
  }
}
