/**
 * When to draw while more is to come: soon, and yet so that drawing leaves most of the time to what is computed. A frame
 * is followed by a rest of some times its own length, so long as nobody sees it as a halt; then by as long as it took.
 */

const RESTS = 4;
const SEEN = 60; // milliseconds

export class Pace {
  private timer: ReturnType<typeof setTimeout> | null = null;
  private frame = 0;
  /** Until when to wait. */
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
        const took = end - start;
        this.rested = end + Math.max(took, Math.min(RESTS * took, SEEN));
      };
      port2.postMessage(null);
    });
  }
}
