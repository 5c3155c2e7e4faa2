"""The table of situations in docs/watch_situations.md: every test that it names is there, and every case."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.watching import test_ranks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "watch_situations.md").read_text()
TABLE = PAGE[PAGE.index("## Where these situations are tested") :]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TABLE)))


def test_there_is_a_row_for_each_situation():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 13
    assert len(NAMED) == 16


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_it_names_is_a_test(file: str, name: str):
    tree = ast.parse((ROOT / file).read_text())
    functions = [one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
    assert name in functions if name else any(one.startswith("test_") for one in functions)


def test_the_cases_that_it_names_are_compared_with_one_process():
    cases = set(re.findall(r'"(\w+)"', TABLE))
    copies, shards = (
        {"ddp", "unused", "no_sync", "module_inside", "wrapped_later"},
        {"fsdp", "micro_steps", "checkpointed", "compiled"},
    )
    assert cases == {*copies, *shards, "mhc"}
    assert cases <= {*test_ranks.EXACT}
    assert test_ranks.Block().up.weight.shape[0] % 2, "shards are uneven"
