/** The list of runs: asked for as a whole, and kept as the server's events say. */

import { ApiError, ask, type Row, type Runs } from "./api";

/** What an event says of a run. */
interface Change {
  readonly type: string;
  readonly row: Row;
}

export class Listed {
  runs = $state.raw<ReadonlyMap<string, Row>>(new Map());
  /** Whether the list has come once. */
  known = $state(false);
  leftOut = $state(0);
  waiting = $state(0);
  version = $state("");
  /** What the served folder is called; empty where the server has none to show. */
  folder = $state("");
  /** Whether the server answers, but not to this page: it has no token, or that of a server before. */
  refused = $state(false);
  problem = $state("");
  /** The number of the list that was asked for last, and of that which is shown. */
  private asked = 0;
  private taken = 0;
  /** Of each list that is on its way the events that were heard since it was asked for. */
  private readonly since = new Set<Change[]>();

  /**
   * Ask for the whole list: at the beginning, and whenever something may have been missed.
   *
   * An answer is of a moment between the question and now: what was heard meanwhile is put over it, and one that a later
   * question has overtaken says nothing any more.
   */
  async refresh(): Promise<void> {
    const mine = ++this.asked;
    const heard: Change[] = [];
    this.since.add(heard);
    try {
      const told = await ask<Runs>("runs");
      if (!this.takes(mine)) return;
      this.runs = new Map(told.runs.map((row) => [row.id, row]));
      this.leftOut = told.left_out;
      this.waiting = told.waiting;
      this.version = told.version;
      this.folder = told.folder;
      this.known = true;
      this.refused = false;
      this.problem = "";
      for (const event of heard) this.put(event);
    } catch (error) {
      if (!this.takes(mine)) return;
      this.refused = error instanceof ApiError && error.status === 401;
      this.problem = error instanceof ApiError ? error.message : String(error);
    } finally {
      this.since.delete(heard);
    }
  }

  /** Whether an answer is of a later question than what is shown. */
  private takes(asked: number): boolean {
    if (asked < this.taken) return false;
    this.taken = asked;
    return true;
  }

  /** Take an event of the stream. */
  hear(type: string, row: Row): void {
    if (type === "heartbeat" || typeof row?.id !== "string") return;
    for (const heard of this.since) heard.push({ type, row });
    this.put({ type, row });
  }

  private put({ type, row }: Change): void {
    const runs = new Map(this.runs);
    if (!runs.has(row.id)) this.waiting = Math.max(0, this.waiting - 1);
    if (type === "gone") runs.delete(row.id);
    else runs.set(row.id, row);
    this.runs = runs;
  }
}
