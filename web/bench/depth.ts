/**
 * Time a forward and a backward pass by connection: depth 200, width 32, 32 rows. `npm run bench`.
 *
 * Processor time of the whole process, which a busy machine changes less than the clock's.
 */

import type { ConnectionOptions } from "../src/engine/connections/index";
import { type Matrix, type Precision, zeros } from "../src/engine/matrix";
import { zeroGradients } from "../src/engine/module";
import { Stack } from "../src/engine/network";
import { Random } from "../src/engine/random";

const [DEPTH, WIDTH, ROWS, REPEATS] = [200, 32, 32, 15];

const connections: readonly ConnectionOptions[] = [
  { name: "plain" },
  { name: "residual" },
  { name: "post_norm" },
  { name: "highway" },
  { name: "dense", growth: 8 },
  { name: "hyper" },
  { name: "manifold" },
  { name: "identity" },
  { name: "attention" },
  { name: "attention", blockSize: 25 },
];

function now(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

function gaussian(rows: number, cols: number, precision: Precision, name: string): Matrix {
  const x = zeros(rows, cols, precision === "float32" ? new Float32Array(0) : new Float64Array(0));
  new Random(0, name).fillNormal(x.data, 1);
  return x;
}

function quartiles(times: number[]): [number, number, number] {
  times.sort((a, b) => a - b);
  return [0.25, 0.5, 0.75].map((share) => times[Math.round(share * (times.length - 1))]) as [number, number, number];
}

function time(connection: ConnectionOptions, precision: Precision, activation: string): string {
  const started = now();
  const stack = new Stack({ depth: DEPTH, width: WIDTH, connection, activation, precision, init: { name: "he" } });
  const building = now() - started;
  const x = gaussian(ROWS, WIDTH, precision, "input");
  const cotangent = gaussian(ROWS, stack.dimOut, precision, "cotangent");
  const times: number[] = [];
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    const start = now();
    zeroGradients(stack.parameters);
    stack.forward(x);
    stack.backward(cotangent);
    times.push(now() - start);
  }
  const [first] = times;
  const [low, middle, high] = quartiles(times.slice(3)).map((value) => value.toFixed(1));
  return `${middle} ms (${low} to ${high}), first ${first.toFixed(0)}, building ${building.toFixed(0)}`;
}

const precision: Precision = process.argv[2] === "float32" ? "float32" : "float64";
for (const connection of connections)
  console.log(precision, JSON.stringify(connection), time(connection, precision, "relu"));
for (const name of ["tanh", "gelu"])
  console.log(precision, "residual", name, time({ name: "residual" }, precision, name));
