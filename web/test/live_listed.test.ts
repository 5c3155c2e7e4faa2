import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Row, Runs } from "../src/live/api";
import { Listed } from "../src/live/listed.svelte";

/** A list that is on its way: `came` is when the page has it. */
interface Answer {
  come(runs: readonly Row[], waiting?: number): Promise<void>;
  fail(): Promise<void>;
}

/** Let what is settled be heard. */
const turn = () => new Promise((done) => setTimeout(done));

let answers: Answer[];
beforeEach(() => {
  answers = [];
  vi.stubGlobal(
    "fetch",
    () =>
      new Promise<Response>((resolve, reject) => {
        const settled = async (act: () => void) => {
          act();
          await turn();
        };
        answers.push({
          come: (runs, waiting = 0) => {
            const told: Runs = { runs, waiting, left_out: 0, version: "1", folder: "runs" };
            return settled(() => resolve(new Response(JSON.stringify(told))));
          },
          fail: () => settled(() => reject(new TypeError("failed to fetch"))),
        });
      }),
  );
});
afterEach(() => {
  vi.unstubAllGlobals();
});

const row = (id: string, steps = 0, state: Row["state"] = "running"): Row => ({
  id,
  name: id,
  title: "",
  kind: "watch",
  state,
  verdict: null,
  until: "",
  steps,
  depth: 1,
  loss: null,
  modified: steps,
  problem: "",
});

/** A list that has come once. */
async function listed(runs: readonly Row[], waiting = 0) {
  const list = new Listed();
  list.refresh();
  await answers[0].come(runs, waiting);
  return { list, shown: () => [...list.runs.values()].map(({ id, steps, state }) => `${id} ${steps} ${state}`).sort() };
}

describe("the list and the events", () => {
  it("keeps what was heard while the list was on its way", async () => {
    const { list, shown } = await listed([row("grows"), row("ends"), row("leaves")]);
    list.refresh(); // what came in between is asked for
    list.hear("appeared", row("new"));
    list.hear("grew", row("grows", 5));
    list.hear("ended", row("ends", 7, "ended"));
    list.hear("gone", row("leaves"));
    const heard = ["ends 7 ended", "grows 5 running", "new 0 running"];
    expect(shown()).toEqual(heard);
    await answers[1].come([row("grows"), row("ends"), row("leaves")], 1); // made before all that
    expect(shown()).toEqual(heard);
    expect(list.waiting).toBe(0); // for the run that appeared
  });

  it("puts over a list only what was heard since it was asked for", async () => {
    const { list, shown } = await listed([row("a")]);
    list.hear("grew", row("a", 5));
    list.refresh();
    await answers[1].come([row("a", 9)]);
    expect(shown()).toEqual(["a 9 running"]);
    list.refresh();
    await answers[2].come([]); // it went while nobody listened
    expect(shown()).toEqual([]);
  });

  it("takes no list, and no failure, that a later one has overtaken", async () => {
    const { list, shown } = await listed([]);
    list.refresh();
    list.refresh();
    list.refresh();
    await answers[3].come([row("a", 9)]);
    await answers[1].come([row("a", 1)]);
    await answers[2].fail();
    expect(shown()).toEqual(["a 9 running"]);
    expect(list.problem).toBe("");
  });

  it("takes an earlier list until the later one comes", async () => {
    const { list, shown } = await listed([]);
    list.refresh();
    list.refresh();
    await answers[1].come([row("a", 1)]);
    expect(shown()).toEqual(["a 1 running"]);
    await answers[2].fail();
    expect(list.problem).toContain("does not answer");
    expect(shown()).toEqual(["a 1 running"]);
  });
});
