declare module "*.tex" {
  const formulas: Record<string, { mathml: string; alt: string }>;
  export default formulas;
}
