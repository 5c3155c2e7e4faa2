"""Two runs of one name, on one page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.report.conftest import write_study
from tests.report.watched import write_watch

from levada.report import render_report
from levada.report.apart import tails


@pytest.mark.parametrize(
    ("paths", "ends"),
    [
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["r/a/x", "r/b/y"], ["x", "y"]),
        (["r/a/x", "r/b/x", "s/b/x"], ["r/a/x", "r/b/x", "s/b/x"]),
        (["x", "a/x"], ["x", "a/x"]),
        (["/x", "x"], ["/x", "x"]),
        (["x", "x"], ["x"]),
    ],
)
def test_paths_are_told_apart_by_as_little_as_it_takes(paths: list[str], ends: list[str]) -> None:
    assert list(tails(paths).values()) == ends


def shown(page: str) -> list[str]:
    """What the list at the top of a page names."""
    listed = page[page.index("<nav") : page.index("</nav>")]
    return [re.sub("<[^>]+>", "", one) for one in re.findall(r"<li><span>(.*?)</span>", listed)]


def test_runs_of_one_name_are_listed_with_their_folders_and_others_are_not(tmp_path: Path) -> None:
    runs = [write_watch(tmp_path / one / "run") for one in ("monday", "<b>tuesday")]
    page = render_report([*runs, write_study(tmp_path / "study")])
    assert shown(page) == [
        "train.py monday/run",
        "train.py &lt;b&gt;tuesday/run",
        "How fast does the gradient of a deep stack decay?",
    ]
    assert page.count("in <code>monday/run</code>") == 1
    alone = render_report([runs[0], write_study(tmp_path / "other")])
    assert shown(alone)[0] == "train.py"


def test_studies_of_one_name_are_apart_in_the_table_of_claims(tmp_path: Path) -> None:
    page = render_report([write_study(tmp_path / one / "R1") for one in ("a", "b")])
    table = page[page.index("All claims") :]
    for one in ("a/R1", "b/R1"):
        assert f"gradient_decay</a> <code>{one}</code>" in table
