/**
 * Random numbers by position: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, 2011 ("Parallel random numbers: as easy
 * as 1, 2, 3"). Four words are a function of a counter (128 bits) and a key (64 bits), and of nothing before them.
 *
 * The key is the seed. The counter's low half counts blocks of four words; its high half is the hash of a name. So each
 * tensor has a stream of its own: layer 7 gets the same weights whatever the depth and the connection, and two networks
 * can be compared pair by pair.
 */

import type { Floats } from "./matrix";

type Words = [number, number, number, number];

/** The high word of a product of two unsigned 32-bit integers, by halves: no partial sum reaches 2^32. */
function highWord(a: number, b: number): number {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = (Math.imul(aHigh, bLow) + (Math.imul(aLow, bLow) >>> 16)) >>> 0;
  const other = (Math.imul(aLow, bHigh) + (middle & 0xffff)) >>> 0;
  return (Math.imul(aHigh, bHigh) + (middle >>> 16) + (other >>> 16)) >>> 0;
}

/** Write the four words of a counter to `words`. */
export function philox(words: Uint32Array, counter: Readonly<Words>, key: readonly [number, number]): void {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const high0 = highWord(0xd2511f53, c0);
    const high1 = highWord(0xcd9e8d57, c2);
    const low0 = Math.imul(0xd2511f53, c0);
    const low1 = Math.imul(0xcd9e8d57, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

/** FNV-1a over the UTF-16 units of a name, from a given start: 32 bits. */
function hash(name: string, start: number): number {
  let value = start;
  for (let i = 0; i < name.length; i++) value = Math.imul(value ^ name.charCodeAt(i), 0x01000193) >>> 0;
  return value;
}

type Kind = "normal" | "uniform";

const MOST_KEPT = 2 ** 22; // numbers: 32 MB

/**
 * The first numbers of streams that were drawn before: a network that differs in its depth, connection or gain from the
 * one before draws most of the same again.
 */
class Kept {
  private readonly streams = new Map<string, Float64Array>();
  private size = 0;

  get(key: string): Float64Array | null {
    return this.streams.get(key) ?? null;
  }

  set(key: string, numbers: Float64Array): void {
    if (numbers.length > MOST_KEPT) return;
    this.size += numbers.length - (this.streams.get(key)?.length ?? 0);
    if (this.size > MOST_KEPT) {
      this.streams.clear();
      this.size = numbers.length;
    }
    this.streams.set(key, numbers);
  }
}

const kept = new Kept();

/** The stream of random numbers that belongs to a seed and a name. */
export class Random {
  private readonly key: readonly [number, number];
  private readonly high: readonly [number, number];
  private block = 0;
  private readonly words = new Uint32Array(4);
  private used = 4;
  private spare: number | null = null;

  constructor(
    private readonly seed: number,
    private readonly name: string,
  ) {
    if (!Number.isSafeInteger(seed) || seed < 0) {
      throw new RangeError(`a seed must be an integer from 0 to 2^53 - 1, got ${seed}.`);
    }
    this.key = [seed >>> 0, Math.floor(seed / 0x100000000)];
    this.high = [hash(name, 0x811c9dc5), hash(name, 0x050c5d1f)];
  }

  /** The next 32 bits. */
  word(): number {
    if (this.used === 4) {
      const counter: Words = [this.block >>> 0, Math.floor(this.block / 0x100000000), ...this.high];
      philox(this.words, counter, this.key);
      this.block++;
      this.used = 0;
    }
    return this.words[this.used++];
  }

  /** Uniform in [0, 1), of 53 bits. */
  uniform(): number {
    const high = this.word() >>> 5;
    return (high * 0x4000000 + (this.word() >>> 6)) / 0x20000000000000;
  }

  /** Standard normal, by the method of Box and Muller. */
  normal(): number {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** An integer in [0, bound), for bounds far below 2^53. */
  below(bound: number): number {
    return Math.floor(this.uniform() * bound);
  }

  fillNormal(data: Floats, deviation: number): void {
    const numbers = this.next("normal", data.length);
    for (let i = 0; i < data.length; i++) data[i] = deviation * numbers[i];
  }

  fillUniform(data: Floats, bound: number): void {
    const numbers = this.next("uniform", data.length);
    for (let i = 0; i < data.length; i++) data[i] = bound * (2 * numbers[i] - 1);
  }

  /** At least `count` numbers, of which the stream goes on behind the first `count`; kept where a block begins. */
  private next(kind: Kind, count: number): Float64Array {
    const first = this.block;
    const whole = this.used === 4 && this.spare === null;
    const key = whole ? `${kind} ${this.seed} ${first} ${this.name}` : null;
    const known = key === null ? null : kept.get(key);
    if (known && known.length >= count) {
      this.skip(kind, first, count, known);
      return known;
    }
    const odd = kind === "normal" && key !== null ? count % 2 : 0; // normal numbers come in pairs
    const numbers = new Float64Array(count + odd);
    // What is known is not drawn again.
    const start = known?.length ?? 0;
    if (known) {
      numbers.set(known);
      this.skip(kind, first, start, known);
    }
    for (let i = start; i < numbers.length; i++) numbers[i] = kind === "normal" ? this.normal() : this.uniform();
    if (odd) this.spare = numbers[count];
    if (key !== null) kept.set(key, numbers);
    return numbers;
  }

  /** Stand where `count` numbers have been drawn from the first block on: a block makes two of either kind. */
  private skip(kind: Kind, first: number, count: number, numbers: Float64Array): void {
    if (kind === "normal") {
      this.block = first + Math.ceil(count / 2);
      this.spare = count % 2 === 1 ? numbers[count] : null;
      return;
    }
    this.block = first + Math.floor(count / 2);
    if (count % 2 === 1) for (let half = 0; half < 2; half++) this.word();
  }
}
