/** `kernels/` compiled, in base64: made by `wasm.ts` when building. */
declare module "virtual:kernels" {
  const code: string;
  export default code;
}
