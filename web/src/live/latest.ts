/** Questions that come faster than answers: only the last one counts, and what was answered is kept. */

/** The answers that were used last, up to a total size. */
export class Kept<Answer> {
  private readonly held = new Map<string, { answer: Answer; size: number }>();
  private total = 0;

  constructor(
    private readonly most: number,
    private readonly sizeOf: (answer: Answer) => number = () => 1,
  ) {}

  get(key: string): Answer | undefined {
    const found = this.held.get(key);
    if (!found) return undefined;
    this.held.delete(key);
    this.held.set(key, found); // the last of a map is the youngest
    return found.answer;
  }

  set(key: string, answer: Answer): void {
    this.delete(key);
    const size = this.sizeOf(answer);
    this.held.set(key, { answer, size });
    this.total += size;
    for (const oldest of this.held.keys()) {
      if (this.total <= this.most || oldest === key) break;
      this.delete(oldest);
    }
  }

  private delete(key: string): void {
    this.total -= this.held.get(key)?.size ?? 0;
    this.held.delete(key);
  }

  get size(): number {
    return this.held.size;
  }
}

interface Options<Answer> {
  /** Milliseconds that must pass without another question. */
  readonly wait: number;
  readonly kept: Kept<Answer>;
}

export class Latest<Question, Answer> {
  private timer: ReturnType<typeof setTimeout> | undefined;
  private running: AbortController | undefined;
  private wanted = "";

  constructor(
    private readonly put: (question: Question, signal: AbortSignal) => Promise<Answer>,
    private readonly keyOf: (question: Question) => string,
    private readonly options: Options<Answer>,
  ) {}

  /**
   * Ask; what is known is received at once, else after the pause.
   *
   * The question before this one is dropped, with its answer. The same question again, while it waits or is asked, is no
   * new one.
   */
  ask(question: Question, receive: (answer: Answer) => void, fail: (error: unknown) => void): void {
    const key = this.keyOf(question);
    const known = this.options.kept.get(key);
    if (known !== undefined) {
      this.drop();
      receive(known);
      return;
    }
    if (this.wanted === key) return;
    this.drop();
    this.wanted = key;
    this.timer = setTimeout(() => this.send(question, key, receive, fail), this.options.wait);
  }

  private send(
    question: Question,
    key: string,
    receive: (answer: Answer) => void,
    fail: (error: unknown) => void,
  ): void {
    const running = new AbortController();
    this.running = running;
    this.put(question, running.signal).then(
      (answer) => {
        if (running.signal.aborted) return;
        this.wanted = "";
        this.options.kept.set(key, answer);
        receive(answer);
      },
      (error) => {
        if (running.signal.aborted) return;
        this.wanted = ""; // so that it can be asked again
        fail(error);
      },
    );
  }

  /** Forget the question that waits or is asked. */
  drop(): void {
    clearTimeout(this.timer);
    this.running?.abort();
    this.wanted = "";
  }
}
