/** Numbers of a matrix as float64: between a load and a store all is float64, as in the engine's TypeScript. */

/** One number. */
export function one<T>(at: usize): f64 {
  return <f64>load<T>(at);
}

export function putOne<T>(at: usize, value: f64): void {
  store<T>(at, <T>value);
}

/** Two numbers that lie side by side. */
export function two<T>(at: usize): v128 {
  if (sizeof<T>() === 4) return f64x2.promote_low_f32x4(v128.load64_zero(at));
  return v128.load(at);
}

export function putTwo<T>(at: usize, values: v128): void {
  if (sizeof<T>() === 4) v128.store64_lane(at, f32x4.demote_f64x2_zero(values), 0);
  else v128.store(at, values);
}

/** One number, twice. */
export function twice<T>(at: usize): v128 {
  if (sizeof<T>() === 4) return f64x2.promote_low_f32x4(v128.load32_splat(at));
  return v128.load64_splat(at);
}
