/** Sentences of the server, set as the report sets them: powers, signs, code. Parts of text, never markup. */

export interface Part {
  readonly kind: "text" | "power" | "code";
  readonly text: string;
}

const CODE = /`([^`\n]+)`/;
const POWER = /(?<=[\w)])\^(\([\w\s./+*−-]{1,24}\)|[−-]?\w+(?:\.\w+)*)/;

export function typeset(told: string): Part[] {
  return told
    .split(CODE)
    .flatMap((part, i): Part[] => (i % 2 ? [{ kind: "code", text: part }] : powers(part)))
    .filter(({ text }) => text !== "");
}

function powers(text: string): Part[] {
  return text.split(POWER).map((part, i): Part => {
    if (i % 2) return { kind: "power", text: part.replace(/^\(|\)$/g, "").replaceAll("-", "−") };
    return { kind: "text", text: part.replaceAll(" <= ", " ≤ ").replaceAll(" >= ", " ≥ ").replaceAll(" +- ", " ± ") };
  });
}
