/** The numbers of a figure as they stand in a report (src/levada/report/embedded.py): deflated planes in base64. */

export interface Plane {
  readonly name: string;
  readonly type: "codes" | "whole" | "float" | "mark";
  readonly count: number;
  /** Of codes: how many make a row. */
  readonly width?: number;
}

export interface Block<Header> {
  readonly header: Header & { readonly planes: readonly Plane[] };
  /** Codes of 16 bits are given as they are, for their logarithms or numbers are wanted. */
  readonly planes: ReadonlyMap<string, Float64Array | Int16Array | Uint8Array>;
}

const OFFSET = 16381;
const PER_OCTAVE = 128;
const [UNDERFLOW, OVERFLOW, INFINITE, NAN] = [1, 32766, 32767, -32768];
const LARGEST = 2 ** 128 * (1 - 2 ** -24);
const BYTES: Record<Plane["type"], number> = { codes: 2, whole: 4, float: 8, mark: 1 };

/** Undo base64 and deflation. */
export async function unpack(base64: string): Promise<Uint8Array> {
  const text = atob(base64.trim());
  const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Read a block's header and planes. */
export function parse<Header>(held: Uint8Array): Block<Header> {
  const view = new DataView(held.buffer, held.byteOffset, held.byteLength);
  const length = view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(held.subarray(4, 4 + length)));
  const planes = new Map<string, Float64Array | Int16Array | Uint8Array>();
  let at = 4 + length;
  for (const plane of header.planes as Plane[]) {
    const size = BYTES[plane.type] * plane.count;
    if (!(at + size <= held.length)) throw new Error("The figure's numbers end before they should.");
    planes.set(plane.name, read(plane, new DataView(view.buffer, view.byteOffset + at, size)));
    at += size;
  }
  return { header, planes };
}

function read({ type, count, width = count }: Plane, view: DataView): Float64Array | Int16Array | Uint8Array {
  if (type === "mark") return new Uint8Array(view.buffer, view.byteOffset, count);
  if (type === "codes") return codes(view, count, width);
  const made = new Float64Array(count);
  for (let i = 0, sum = 0; i < count; i++) {
    if (type === "float") made[i] = view.getFloat64(8 * i, true);
    else {
      sum += view.getInt32(4 * i, true);
      made[i] = sum;
    }
  }
  return made;
}

function codes(view: DataView, count: number, width: number): Int16Array {
  const made = new Int16Array(count);
  for (let i = 0; i < count; i++) {
    const step = view.getUint8(i) | (view.getUint8(count + i) << 8);
    made[i] = (i % width === 0 ? 0 : made[i - 1]) + step; // stored in 16 bits, so that it wraps as it did there
  }
  return made;
}

/** The logarithms to base 10 of codes of numbers that are not 0; NaN where there is none. */
export function logs(codes: Int16Array): Float32Array {
  const decade = Math.log10(2) / PER_OCTAVE;
  return Float32Array.from(codes, (code) => (code === NAN ? Number.NaN : (code - OFFSET) * decade));
}

/** The numbers that codes stand for. */
export function decoded(codes: Int16Array): Float64Array {
  return Float64Array.from(codes, number);
}

function number(code: number): number {
  if (code === NAN) return Number.NaN;
  if (code < 0) return -number(-code);
  if (code === 0) return 0;
  if (code === UNDERFLOW) return 2 ** -149;
  if (code === OVERFLOW) return 2 ** 128;
  if (code === INFINITE) return Number.POSITIVE_INFINITY;
  return Math.min(2 ** ((code - OFFSET) / PER_OCTAVE), LARGEST);
}

/** A plane's numbers, whatever form it has. */
export function numbers(block: Block<unknown>, name: string): Float64Array | null {
  const plane = block.planes.get(name);
  if (!plane) return null;
  return plane instanceof Int16Array ? decoded(plane) : Float64Array.from(plane);
}
