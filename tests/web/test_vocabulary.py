"""The pages, the report and the terminal call a verdict, a finding and the state of a training by the same words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from levada._names import CALLED
from levada.report.claim import STATUSES
from levada.report.page import sections_of
from levada.report.words import SIGNS
from levada.runs import Run, RunWriter
from levada.web.summary import row_of

from .conftest import write_watched

WORDS = Path(__file__).parents[2] / "web/src/live/words.ts"


def written(name: str) -> dict[str, str]:
    """Give a table of the pages' source."""
    found = re.search(rf"const {name}\b[^=]*= \{{(.*?)\}};", WORDS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, name
    return {quoted or bare: word for quoted, bare, word in re.findall(r'(?:"([\w ,]+)"|(\w+)): "([^"]+)"', found[1])}


@pytest.mark.parametrize(
    ("name", "words", "keys"),
    [
        ("VERDICT_WORDS", CALLED, {"healthy", "warn", "error", "unknown"}),
        ("SEVERITY_WORDS", CALLED, {"error", "warn", "info"}),
        ("SIGNS", SIGNS, {"healthy", "warn", "error", "unknown"}),
        ("DECIDED_SIGNS", STATUSES, set(STATUSES)),
    ],
)
def test_the_pages_have_the_words_of_the_command_line(name: str, words: dict[str, str], keys: set[str]) -> None:
    assert written(name) == {key: words[key] for key in keys}


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({"type": "end", "state": "ended"}, "ended"),
        ({"type": "end", "state": "failed", "error": "no memory"}, "failed"),
        ({"type": "stopped", "step": 3, "told": "The loss is NaN."}, "stopped"),
        ({"type": "losses", "first": 3, "loss": [1.0]}, "stopped"),  # its process was killed
    ],
)
def test_the_report_and_the_list_say_the_same_of_a_training(tmp_path: Path, last: dict[str, Any], state: str) -> None:
    folder = tmp_path / "training"
    with RunWriter.create(folder, kind="train", name="training", config={"run": {"steps": 60}}) as writer:
        writer.append("losses", first=0, loss=[3.0, 2.0, 2.0])
        writer.append(**last)
    write_watched(folder / "watch" / "1")
    row, view = row_of(folder, "a" * 20, "training"), sections_of(Run(folder), drawn=False)[-1]["view"]
    assert (row.state, row.verdict) == (view["state"], view["verdict"]["verdict"]) == (state, "warn")
    assert view["verdict"]["called"] == "warning"
