/** The order of work among workers, with workers that answer when they are told to. */

import { expect, test } from "vitest";
import type { Response } from "../src/engine/protocol";
import { type Asks, type Job, type Outcome, Pool } from "../src/explorer/pool";

interface Running {
  readonly depth: number;
  answer(error?: string): Promise<void>;
}

function fake() {
  const running: Running[] = [];
  const make = () => {
    let depth = 0;
    const ask = (request: { type: string; network?: { depth: number } }) => {
      if (request.type === "configure") {
        depth = request.network!.depth;
        return { id: 0, answer: Promise.resolve({ type: "configured" } as Response) };
      }
      const answer = new Promise<Response>((resolve, reject) => {
        running.push({
          depth,
          async answer(error) {
            if (error) reject(new Error(error));
            else resolve({ type: "signals", id: depth } as Response);
            for (let turn = 0; turn < 10; turn++) await Promise.resolve();
          },
        });
      });
      return { id: 0, answer };
    };
    return { ask } as unknown as Asks;
  };
  return { running, make };
}

const job = (depth: number, name = "plain") =>
  ({ network: { depth, connection: { name } }, optimizer: { name: "sgd", lr: 1 }, batch: 32 }) as Job;
const jobs = (...depths: number[]) => depths.map((depth) => job(depth));

function recorder() {
  const done: [number, string][] = [];
  const record = (place: number, outcome: Outcome) => {
    done.push([place, "error" in outcome ? outcome.error : `depth ${outcome.signals.id}`]);
  };
  return { done, record };
}

test("jobs are begun in their order, as many as there are workers", async () => {
  const { running, make } = fake();
  const { done, record } = recorder();
  new Pool(2, make).compute(jobs(1, 2, 3), record);
  expect(running.map(({ depth }) => depth)).toEqual([1, 2]);
  await running[1].answer();
  expect(running.map(({ depth }) => depth)).toEqual([1, 2, 3]);
  await running[2].answer();
  await running[0].answer();
  expect(done).toEqual([
    [1, "depth 2"],
    [2, "depth 3"],
    [0, "depth 1"],
  ]);
});

test("what is no longer wanted is not begun", async () => {
  const { running, make } = fake();
  const old = recorder();
  const { done, record } = recorder();
  const pool = new Pool(1, make);
  pool.compute(jobs(1, 2, 3), old.record);
  pool.compute(jobs(4), record);
  expect(running.map(({ depth }) => depth)).toEqual([1]);
  await running[0].answer();
  expect(running.map(({ depth }) => depth)).toEqual([1, 4]);
  await running[1].answer();
  expect(old.done).toEqual([[0, "depth 1"]]); // it was begun, and is what there is until the newer one comes
  expect(done).toEqual([[0, "depth 4"]]);
});

test("an answer that a newer one has overtaken is dropped", async () => {
  const { running, make } = fake();
  const old = recorder();
  const { done, record } = recorder();
  const pool = new Pool(2, make);
  pool.compute(jobs(1), old.record);
  pool.compute(jobs(2), record);
  await running[1].answer();
  await running[0].answer();
  expect(old.done).toEqual([]);
  expect(done).toEqual([[0, "depth 2"]]);
});

test("while questions come faster than answers, every connection is answered in turn, by its newest question", async () => {
  const { running, make } = fake();
  const done: string[] = [];
  const pool = new Pool(1, make);
  const names = ["dense", "hyper", "plain"]; // the longest first
  for (let depth = 1; depth <= 13; depth++) {
    const asked = names.map((name) => job(depth, name));
    pool.compute(asked, (place, outcome) => done.push(`${names[place]} ${"signals" in outcome && outcome.signals.id}`));
    if (depth % 2 === 0) await running.at(-1)!.answer();
  }
  expect(done).toEqual(["dense 1", "hyper 2", "plain 4", "dense 6", "hyper 8", "plain 10"]);
});

test("what was computed once comes at once, also what a newer question has taken the place of", async () => {
  const { running, make } = fake();
  const { done, record } = recorder();
  const pool = new Pool(1, make);
  pool.compute(jobs(1), record);
  pool.compute(jobs(2), record);
  await running[0].answer();
  await running[1].answer();
  pool.compute(jobs(1, 2), record);
  expect(done).toEqual([
    [0, "depth 1"],
    [0, "depth 2"],
    [0, "depth 1"],
    [1, "depth 2"],
  ]);
  expect(running).toHaveLength(2);
});

test("what cannot be computed is said, and the worker goes on", async () => {
  const { running, make } = fake();
  const { done, record } = recorder();
  new Pool(1, make).compute(jobs(1, 2), record);
  await running[0].answer("too much.");
  await running[1].answer();
  expect(done).toEqual([
    [0, "too much."],
    [1, "depth 2"],
  ]);
});

test("workers are warmed while nothing is asked, and what is asked comes first and by itself", async () => {
  const { running, make } = fake();
  const { done, record } = recorder();
  const pool = new Pool(2, make);
  pool.warm(jobs(7, 8, 9));
  expect(running.map(({ depth }) => depth)).toEqual([7, 7]);
  await running[0].answer("too much.");
  expect(running.map(({ depth }) => depth)).toEqual([7, 7, 8]);
  pool.compute(jobs(1, 2), record);
  await running[1].answer();
  await running[2].answer();
  expect(running.map(({ depth }) => depth)).toEqual([7, 7, 8, 1, 2]);
  await running[3].answer();
  await running[4].answer();
  expect(done).toEqual([
    [0, "depth 1"],
    [1, "depth 2"],
  ]);
});

test("not everything is kept", async () => {
  const { running, make } = fake();
  const pool = new Pool(1, make);
  for (let depth = 1; depth <= 70; depth++) {
    pool.compute(jobs(depth), () => {});
    await running.at(-1)!.answer();
  }
  const { done, record } = recorder();
  pool.compute(jobs(70, 1), record);
  expect(done).toEqual([[0, "depth 70"]]);
  expect(running.at(-1)!.depth).toBe(1);
});
