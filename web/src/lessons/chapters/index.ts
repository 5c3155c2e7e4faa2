/** The seven chapters: what stands in their list; each is fetched when it is opened. */

import type { Chapter } from "../types";

export interface Listed {
  readonly title: string;
  /** How many it asks. */
  readonly questions: number;
  load(): Promise<Chapter>;
}

export const CHAPTERS: readonly Listed[] = [
  { title: "One neuron", questions: 4, load: async () => (await import("./neuron")).chapter },
  { title: "Many layers", questions: 5, load: async () => (await import("./layers")).chapter },
  { title: "How to begin", questions: 4, load: async () => (await import("./start")).chapter },
  { title: "Normalisation", questions: 4, load: async () => (await import("./norm")).chapter },
  { title: "Residual connections", questions: 5, load: async () => (await import("./residual")).chapter },
  { title: "Gates, and depth in time", questions: 7, load: async () => (await import("./gates")).chapter },
  { title: "Many streams", questions: 4, load: async () => (await import("./streams")).chapter },
];
