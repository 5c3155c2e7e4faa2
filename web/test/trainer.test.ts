/** Training behind the page: side by side, stopped and resumed, swept over depth; on the digits, in the engine itself. */

import { beforeAll, describe, expect, it } from "vitest";
import type { Request, Response } from "../src/engine/protocol";
import { Session } from "../src/engine/session";
import { DEFAULTS, type Settings } from "../src/explorer/settings";
import { type Digits, digits, TRAINED_ON } from "../src/explorer/train/digits";
import { reading, sweepReading } from "../src/explorer/train/plan";
import { Sweep, Trainer, type Worker } from "../src/explorer/train/trainer.svelte";

/** A session in this thread. */
class Here implements Worker {
  private readonly waiting = new Map<number, (response: Response) => void>();
  private next = 0;
  private readonly session = new Session(
    (response) => this.waiting.get(response.id)?.(response),
    () => new Promise((resolve) => setTimeout(resolve)),
  );

  ask(request: object, answer: string, progress?: (found: never) => void) {
    const id = this.next++;
    const promised = new Promise<never>((resolve, reject) => {
      this.waiting.set(id, (response) => {
        if (response.type === "progress") progress?.(response as never);
        else if (response.type === answer) resolve(response as never);
        else reject(new Error("message" in response ? response.message : response.type));
      });
    });
    void this.session.receive({ ...request, id } as Request);
    return { id, answer: promised };
  }

  cancel(id: number): void {
    void this.session.receive({ type: "cancel", id });
  }

  close(): void {}
}

const settings: Settings = { ...DEFAULTS, trainDepth: 6, trainSteps: 100 };
let data: Digits;

beforeAll(async () => {
  data = await digits();
});

describe("the digits", () => {
  it("are 1,437 to train on and 360 held out, of mean 0 and deviation 1", () => {
    const { train, heldOut } = data;
    expect([train.labels.length, heldOut.labels.length]).toEqual([TRAINED_ON, 360]);
    const inputs = Array.from(train.inputs);
    const mean = inputs.reduce((sum, value) => sum + value, 0) / inputs.length;
    const square = inputs.reduce((sum, value) => sum + value * value, 0) / inputs.length;
    expect(mean).toBeCloseTo(0, 5);
    expect(square).toBeCloseTo(1, 5);
    expect([...train.labels.slice(0, 10)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(new Set(heldOut.labels).size).toBe(10);
  });
});

describe("training side by side", () => {
  it("reports to the last step, and learns", async () => {
    const trainer = new Trainer(() => new Here());
    expect(trainer.state).toBe("new");
    await trainer.start(settings, data);
    expect(trainer.state).toBe("done");
    for (const { reports, step } of trainer.runs) {
      expect(step).toBe(100);
      expect(reports.at(-1)!.trained.loss).toBeLessThan(0.6 * reports[0].trained.loss);
      expect(reports.at(-1)!.heldOut.accuracy).toBeGreaterThan(0.4);
    }
    expect(reading(trainer.runs, 6)).toMatch(
      /^At depth 6, after 100 steps, plain has a training loss of .* and residual has/,
    );
  });

  it("resumes where it was stopped, and comes to the same", async () => {
    const [whole, parted] = [0, 1].map(() => new Trainer(() => new Here()));
    await whole.start(settings, data);
    const started = parted.start(settings, data);
    await new Promise((resolve) => setTimeout(resolve, 20));
    parted.stop();
    await started;
    expect(parted.state).toBe("stopped");
    const stopped = parted.runs.map(({ step }) => step);
    expect(Math.max(...stopped)).toBeLessThan(100);
    await parted.start(settings, data);
    expect(parted.state).toBe("done");
    const ends = [whole, parted].map(({ runs }) => runs.map(({ reports }) => reports.at(-1)!.heldOut));
    expect(ends[1]).toEqual(ends[0]);
  });

  it("forgets networks when the settings change", async () => {
    const trainer = new Trainer(() => new Here());
    await trainer.start({ ...settings, trainSteps: 20 }, data);
    trainer.match({ ...settings, trainSteps: 20, depth: 7 });
    expect(trainer.runs).toHaveLength(2);
    trainer.match({ ...settings, trainSteps: 20, trainLr: 0.01 });
    expect(trainer.runs).toHaveLength(0);
    expect(trainer.state).toBe("new");
  });

  it("says what cannot be done", async () => {
    const trainer = new Trainer(() => new Here());
    await trainer.start({ ...settings, trainActivation: "sine", connections: ["plain"] }, data);
    expect(trainer.runs[0].error).toContain("activation sine is not known");
  });
});

describe("a sweep over depth", () => {
  it("fills in from the shallow, is stopped and resumed, and shows degradation", { timeout: 120_000 }, async () => {
    const sweep = new Sweep(2, () => new Here());
    const swept = { ...settings, trainSteps: 150 };
    const started = sweep.start(swept, data, [2, 8, 48]);
    while (sweep.swept.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
    sweep.stop();
    await started;
    expect(sweep.state).toBe("stopped");
    const before = sweep.swept;
    expect(before.length).toBeLessThan(6);
    expect(sweep.total).toBe(6);
    await sweep.start(swept, data, [2, 8, 48]);
    expect(sweep.state).toBe("done");
    expect(sweep.swept.slice(0, before.length)).toEqual(before);
    const found = sweep.swept.map(({ name, depth }) => `${name} ${depth}`);
    expect(found.sort()).toEqual(["plain 2", "plain 48", "plain 8", "residual 2", "residual 48", "residual 8"]);
    const loss = (name: string, depth: number) =>
      sweep.swept.find((one) => one.name === name && one.depth === depth)!.last.trained.loss;
    // Nothing is learned at 48 layers without the skip, which is no matter of capacity: two layers learn.
    expect(loss("plain", 48)).toBeGreaterThan(0.9 * Math.log(10));
    expect(loss("plain", 2)).toBeLessThan(0.3 * Math.log(10));
    expect(loss("residual", 48)).toBeLessThan(0.3 * Math.log(10));
    // Which of two networks that are trained side by side ends first is no matter of the sweep.
    expect(sweepReading(sweep.swept).join("\n")).toMatch(
      /^plain: least training loss .* at depth 2; at depth 48 .*: degradation\.$/m,
    );
  });

  it("trains each network once when it is stopped and gone on with at once", { timeout: 60_000 }, async () => {
    const sweep = new Sweep(2, () => new Here());
    const swept = { ...settings, trainSteps: 40 };
    const ends = [sweep.start(swept, data, [2, 4, 8])];
    for (const pause of [0, 20, 0]) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      sweep.stop();
      expect(sweep.total).toBe(6);
      ends.push(sweep.start(swept, data, [2, 4, 8]));
      expect(sweep.state).toBe("training");
    }
    await Promise.all(ends);
    expect([sweep.state, sweep.error, sweep.now, sweep.total]).toEqual(["done", null, [], 6]);
    const found = sweep.swept.map(({ name, depth }) => `${name} ${depth}`);
    expect(found.sort()).toEqual(["plain 2", "plain 4", "plain 8", "residual 2", "residual 4", "residual 8"]);
    const once = new Sweep(2, () => new Here());
    await once.start(swept, data, [2, 4, 8]);
    for (const { name, depth, last } of once.swept) {
      expect(sweep.swept.find((one) => one.name === name && one.depth === depth)!.last).toEqual(last);
    }
  });
});
