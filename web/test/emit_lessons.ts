/** What the engine answers to the lessons' questions, by chapter and question, for `tests/web/test_lessons.py`. */

import { keyOf } from "../src/lessons/answers";
import { CHAPTERS } from "../src/lessons/chapters/index";
import { answer } from "../src/lessons/judge";
import { questionsOf } from "../src/lessons/types";
import { laboratory } from "./lesson_lab";

const lab = laboratory();
const found: Record<string, unknown> = {};
for (const [at, { load }] of CHAPTERS.entries()) {
  const chapter = await load();
  for (const question of questionsOf(chapter)) {
    const { kind } = question;
    const verdict = await answer(question, kind === "number" ? question.low : 0, chapter.settings, lab);
    found[keyOf(at + 1, question.id)] = { kind, found: verdict.found };
  }
}
process.stdout.write(JSON.stringify(found));
