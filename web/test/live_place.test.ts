import { describe, expect, it } from "vitest";
import {
  decode,
  encode,
  LISTING,
  type Listing,
  type Place,
  SORTS,
  tokenOf,
  unmeant,
  VERDICTS,
  whole,
} from "../src/live/place";

/** A small generator of numbers, the same in each run. */
function numbers(seed: number): (most: number) => number {
  let state = seed;
  return (most) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * most);
  };
}

function anyPlace(draw: (most: number) => number): Place {
  const maybe = (most: number) => (draw(2) ? draw(most) : null);
  const [from, size] = [maybe(1000), draw(1000)];
  const [first, depth] = [maybe(100), draw(100)];
  return {
    ...whole(`run${draw(50)}`, draw(2) ? `other${draw(50)}` : null),
    signals: [draw(2) ? "gradient_rms" : null, draw(2) ? "update_ratio" : null],
    from,
    to: draw(2) ? (from ?? 0) + size : null,
    first,
    last: draw(2) ? (first ?? 0) + depth : null,
    step: maybe(100_000),
    layer: maybe(10_000),
  };
}

describe("an address", () => {
  it("gives back what it was made of", () => {
    const draw = numbers(1);
    for (let i = 0; i < 500; i++) {
      const place = anyPlace(draw);
      expect(decode(encode(place))).toEqual(place);
      const listing: Listing = {
        page: "runs",
        text: ["", "relu 50", "a&b=c#d?é/%"][draw(3)],
        verdict: draw(2) ? VERDICTS[draw(VERDICTS.length)] : null,
        sort: SORTS[draw(SORTS.length)],
        reversed: draw(2) === 1,
      };
      expect(decode(encode(listing))).toEqual(listing);
    }
  });

  it("holds only what differs from the usual", () => {
    expect(encode(LISTING)).toBe("#/");
    expect(encode(whole("abc"))).toBe("#/run/abc");
    expect(encode({ ...whole("abc"), step: 40 })).toBe("#/run/abc?step=40");
  });

  it("leaves out what cannot be meant", () => {
    expect(decode("")).toEqual(LISTING);
    expect(decode("#/run/../etc")).toEqual(LISTING);
    expect(decode("#/run/<script>")).toEqual(LISTING);
    expect(decode("#/nonsense?verdict=maybe&sort=size")).toEqual(LISTING);
    expect(decode("#/run/a?from=-3&to=1e9&step=4.5&signal=a b&with=a&layer=7")).toEqual({ ...whole("a"), layer: 7 });
    expect(decode("#/run/a?from=9&to=3")).toEqual(whole("a"));
    expect(decode(`#/run/a?step=${"9".repeat(40)}`)).toEqual(whole("a"));
  });
});

describe("the launch's token", () => {
  it("is taken out of the address, and nothing else is", () => {
    expect(tokenOf("#token=abcDEF_-123")).toEqual({ token: "abcDEF_-123", rest: "#/" });
    expect(tokenOf("#/run/a?step=3")).toEqual({ token: null, rest: "#/run/a?step=3" });
    expect(tokenOf("#token=<b>")).toEqual({ token: null, rest: "#token=<b>" });
  });
});

describe("what an address says and the page does not know", () => {
  it("is named, and what is known or usual is not", () => {
    expect(unmeant("")).toEqual([]);
    expect(unmeant("#/?text=a+b&verdict=warn&sort=modified&reversed=1")).toEqual([]);
    expect(unmeant("#/run/abc?with=def&from=2&to=9&step=4&layer=0&signal=gradient_rms")).toEqual([]);
    expect(unmeant("#/nosuch?sort=size&color=red")).toEqual(["nosuch", "sort=size", "color=red"]);
    expect(unmeant("#/run/a b")).toEqual(["run/a b"]);
    expect(unmeant("#/run/abc/more")).toEqual(["run/abc/more"]);
    expect(unmeant("#/run/abc?from=9&to=3&zoom=2")).toEqual(["from=9 is behind to=3", "to=3", "zoom=2"]);
    expect(unmeant("#/run/abc?first=9&last=8&from=x&to=3")).toEqual(["first=9 is behind last=8", "last=8", "from=x"]);
    expect(unmeant(`#/${"x".repeat(500)}`)[0]).toHaveLength(61);
    const draw = numbers(7);
    for (let i = 0; i < 200; i++) expect(unmeant(encode(anyPlace(draw)))).toEqual([]);
  });
});
