/**
 * The engine's inner loops for WebAssembly, two float64 numbers at a time, compiled by AssemblyScript (`../wasm.ts`).
 *
 * Each gives, to the last bit, what the engine's TypeScript gives: operations and their order are the same. Places are in
 * bytes; `single` says that numbers are float32.
 */

import {
  addRowOf,
  addScaledRowsOf,
  columnsOf,
  dotOf,
  gateBackOf,
  gateOf,
  reluBackOf,
  reluOf,
  rowSquaresOf,
  scaledSumOf,
  sigmoidBackOf,
  sigmoidOf,
  sumOf,
  tanhBackOf,
  timesOf,
} from "./elementwise";
import { productOf } from "./product";
import { alongOf, gatherOf, mixBackOf, mixOf, spreadOf } from "./streams";

export function product(
  single: bool,
  out: usize,
  outRow: usize,
  a: usize,
  aRow: usize,
  aCol: usize,
  b: usize,
  bRow: usize,
  bCol: usize,
  m: usize,
  n: usize,
  k: usize,
  accumulate: bool,
  panel: usize,
): void {
  if (single) productOf<f32>(out, outRow, a, aRow, aCol, b, bRow, bCol, m, n, k, accumulate, panel);
  else productOf<f64>(out, outRow, a, aRow, aCol, b, bRow, bCol, m, n, k, accumulate, panel);
}

export function scaledSum(single: bool, to: usize, factor: f64, x: usize, y: usize, count: usize): void {
  if (single) scaledSumOf<f32>(to, factor, x, y, count);
  else scaledSumOf<f64>(to, factor, x, y, count);
}

export function sum(single: bool, to: usize, x: usize, y: usize, count: usize): void {
  if (single) sumOf<f32>(to, x, y, count);
  else sumOf<f64>(to, x, y, count);
}

export function times(single: bool, to: usize, x: usize, y: usize, count: usize): void {
  if (single) timesOf<f32>(to, x, y, count);
  else timesOf<f64>(to, x, y, count);
}

export function addRow(single: bool, to: usize, row: usize, rows: usize, cols: usize): void {
  if (single) addRowOf<f32>(to, row, rows, cols);
  else addRowOf<f64>(to, row, rows, cols);
}

export function sigmoid(single: bool, to: usize, u: usize, count: usize): void {
  if (single) sigmoidOf<f32>(to, u, count);
  else sigmoidOf<f64>(to, u, count);
}

export function relu(single: bool, to: usize, u: usize, count: usize): void {
  if (single) reluOf<f32>(to, u, count);
  else reluOf<f64>(to, u, count);
}

export function sigmoidBack(single: bool, to: usize, g: usize, y: usize, count: usize): void {
  if (single) sigmoidBackOf<f32>(to, g, y, count);
  else sigmoidBackOf<f64>(to, g, y, count);
}

export function tanhBack(single: bool, to: usize, g: usize, t: usize, count: usize): void {
  if (single) tanhBackOf<f32>(to, g, t, count);
  else tanhBackOf<f64>(to, g, t, count);
}

export function reluBack(single: bool, to: usize, g: usize, u: usize, count: usize): void {
  if (single) reluBackOf<f32>(to, g, u, count);
  else reluBackOf<f64>(to, g, u, count);
}

export function gate(single: bool, to: usize, x: usize, f: usize, t: usize, count: usize): void {
  if (single) gateOf<f32>(to, x, f, t, count);
  else gateOf<f64>(to, x, f, t, count);
}

export function gateBack(
  single: bool,
  to: usize,
  byGate: usize,
  byBranch: usize,
  g: usize,
  x: usize,
  f: usize,
  t: usize,
  count: usize,
): void {
  if (single) gateBackOf<f32>(to, byGate, byBranch, g, x, f, t, count);
  else gateBackOf<f64>(to, byGate, byBranch, g, x, f, t, count);
}

export function columns(
  single: bool,
  to: usize,
  toRow: usize,
  from: usize,
  fromRow: usize,
  rows: usize,
  count: usize,
  add: bool,
): void {
  if (single) columnsOf<f32>(to, toRow, from, fromRow, rows, count, add);
  else columnsOf<f64>(to, toRow, from, fromRow, rows, count, add);
}

export function addScaledRows(single: bool, to: usize, factors: usize, x: usize, rows: usize, cols: usize): void {
  if (single) addScaledRowsOf<f32>(to, factors, x, rows, cols);
  else addScaledRowsOf<f64>(to, factors, x, rows, cols);
}

export function rowSquares(single: bool, to: usize, x: usize, rows: usize, cols: usize): void {
  if (single) rowSquaresOf<f32>(to, x, rows, cols);
  else rowSquaresOf<f64>(to, x, rows, cols);
}

export function dot(single: bool, x: usize, y: usize, count: usize): f64 {
  return single ? dotOf<f32>(x, y, count) : dotOf<f64>(x, y, count);
}

export function gather(single: bool, to: usize, weights: usize, x: usize, rows: usize, n: usize, dim: usize): void {
  if (single) gatherOf<f32>(to, weights, x, rows, n, dim);
  else gatherOf<f64>(to, weights, x, rows, n, dim);
}

export function spread(single: bool, to: usize, weights: usize, x: usize, rows: usize, n: usize, dim: usize): void {
  if (single) spreadOf<f32>(to, weights, x, rows, n, dim);
  else spreadOf<f64>(to, weights, x, rows, n, dim);
}

export function mix(
  single: bool,
  to: usize,
  mix: usize,
  x: usize,
  write: usize,
  f: usize,
  rows: usize,
  n: usize,
  dim: usize,
): void {
  if (single) mixOf<f32>(to, mix, x, write, f, rows, n, dim);
  else mixOf<f64>(to, mix, x, write, f, rows, n, dim);
}

export function mixBack(single: bool, to: usize, mix: usize, x: usize, rows: usize, n: usize, dim: usize): void {
  if (single) mixBackOf<f32>(to, mix, x, rows, n, dim);
  else mixBackOf<f64>(to, mix, x, rows, n, dim);
}

export function along(
  single: bool,
  to: usize,
  x: usize,
  nx: usize,
  y: usize,
  ny: usize,
  rows: usize,
  dim: usize,
): void {
  if (single) alongOf<f32>(to, x, nx, y, ny, rows, dim);
  else alongOf<f64>(to, x, nx, y, ny, rows, dim);
}
