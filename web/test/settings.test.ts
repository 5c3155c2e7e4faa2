/** Settings in a link: what is written is read again, and what is wrong is said. */

import { expect, test } from "vitest";
import { activationNames } from "../src/engine/activation";
import { Network } from "../src/engine/network";
import { Random } from "../src/engine/random";
import {
  CELLS,
  CONNECTIONS,
  colours,
  DEFAULTS,
  decode,
  encode,
  INITS,
  NORMS,
  networkOptions,
  OPTIMIZERS,
  PRECISIONS,
  RANGES,
  type Settings,
  TABS,
  VIEWS,
} from "../src/explorer/settings";
import { shape } from "../src/figures/draw";

const OWN = ["trainLr", "recurrentGain", "forgetBias"];

function draw(random: Random): Settings {
  const pick = <T>(known: readonly T[]): T => known[random.below(known.length)];
  const flip = () => random.below(2) === 1;
  const order = [...CONNECTIONS].sort(() => random.uniform() - 0.5);
  const numbers = Object.entries(RANGES).map(([name, { low, high }]) => {
    const real = ["gain", "weightVariance", "biasVariance", "gateBias", "alpha", "lr", "spread", ...OWN].includes(name);
    return [name, real ? low + random.uniform() * (high - low) : low + random.below(high - low + 1)];
  });
  return {
    ...(Object.fromEntries(numbers) as Pick<Settings, keyof typeof RANGES>),
    tab: pick(TABS),
    expert: flip(),
    connections: order.slice(0, 1 + random.below(CONNECTIONS.length)),
    activation: pick(activationNames),
    init: pick(INITS),
    norm: pick(NORMS),
    preActivation: flip(),
    bias: flip(),
    optimizer: pick(OPTIMIZERS),
    precision: pick(PRECISIONS),
    view: pick(VIEWS),
    trainActivation: pick(activationNames),
    trainNorm: pick(NORMS),
    cells: CELLS.slice(random.below(CELLS.length)),
    orthogonal: flip(),
    answers: pick(["", "1.a:0.25,5.b:2"]),
    lesson: pick(["", "gain:8;connections:plain,residual;norm:"]),
  };
}

test("any settings come back from their link", () => {
  const random = new Random(0, "settings");
  for (let trial = 0; trial < 500; trial++) {
    const settings = draw(random);
    const { settings: back, refused } = decode(`#${encode(settings)}`);
    expect(back).toEqual(settings);
    expect(refused).toEqual([]);
  }
});

test("a link says what differs from the defaults, and nothing else", () => {
  expect(encode(DEFAULTS)).toBe("");
  expect(decode("").settings).toEqual(DEFAULTS);
  expect(encode({ ...DEFAULTS, depth: 200, connections: ["attention", "plain"] })).toBe(
    "connections=attention,plain&depth=200",
  );
});

test("the order of connections is kept", () => {
  expect(decode("connections=residual,plain").settings.connections).toEqual(["residual", "plain"]);
});

test.each([
  ["depth=0", 'depth must be a whole number from 1 to 1,000, got "0": it is 50.'],
  ["depth=12.5", 'depth must be a whole number from 1 to 1,000, got "12.5": it is 50.'],
  ["depth=", 'depth must be a whole number from 1 to 1,000, got "": it is 50.'],
  ["gain=NaN", 'gain must be a number from 0.01 to 100, got "NaN": it is 1.'],
  ["gain=0x10", 'gain must be a number from 0.01 to 100, got "0x10": it is 1.'],
  ["expert=yes", 'expert must be 1 or 0, got "yes": it is 0.'],
  ["norm=group", 'norm must be one of none, layer, rms and batch, got "group": it is none.'],
  ["__proto__=1", 'There is no setting "__proto__".'],
  ["constructor=1", 'There is no setting "constructor".'],
])("%s is refused in a sentence", (query, sentence) => {
  const { settings, refused } = decode(query);
  expect(settings).toEqual(DEFAULTS);
  expect(refused).toEqual([sentence]);
});

test.each(["", "plain,plain", "plain,nothing", [...CONNECTIONS, "plain"].join(",")])(
  "connections=%s are refused",
  (text) => {
    const { settings, refused } = decode(`connections=${text}`);
    expect(settings.connections).toEqual(["plain", "residual"]);
    expect(refused).toHaveLength(1);
  },
);

test("all nine connections are shown at once, each by a colour and mark of its own", () => {
  const { settings, refused } = decode(`connections=${CONNECTIONS.join(",")}`);
  expect(refused).toEqual([]);
  const looks = [...colours(settings.connections).values()].map(
    (colour) => `${Number(colour) % 7} ${shape(colour, 0, 0, 3)}`,
  );
  expect(looks).toHaveLength(9);
  expect(new Set(looks).size).toBe(9);
});

test("one wrong part leaves the others as they are", () => {
  const { settings, refused } = decode("depth=20&width=zzz&seed=3");
  expect([settings.depth, settings.width, settings.seed]).toEqual([20, 32, 3]);
  expect(refused).toHaveLength(1);
});

test("every connection has a colour of its own, and keeps it where it can", () => {
  const random = new Random(1, "colours");
  for (let trial = 0; trial < 100; trial++) {
    const { connections } = draw(random);
    expect(new Set(colours(connections).values()).size).toBe(connections.length);
  }
  expect(colours(["plain", "residual"]).get("residual")).toBe(colours(["residual"]).get("residual"));
});

test.each(CONNECTIONS)(
  "the engine takes what is chosen for %s, also where there are fewer layers than blocks",
  (name) => {
    for (const depth of [1, 3, 9]) {
      const network = new Network(networkOptions({ ...DEFAULTS, depth, width: 4, blocks: 8 }, name));
      expect(network.parameters.length).toBeGreaterThan(0);
    }
  },
);
