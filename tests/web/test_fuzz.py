"""A short search by a fuzzer that sees which lines are reached; `tests/web/fuzz.py` alone goes on for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_no_input_that_a_fuzzer_finds_stops_a_reader(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    program = Path(__file__).with_name("fuzz.py")
    words = [sys.executable, "-P", str(program), str(tmp_path), "-runs=150", "-max_len=4096", "-seed=1"]
    told = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=560)
    assert told.returncode == 0, told.stderr[-4000:]
    assert re.search(r"Done 150 runs", told.stderr)
    assert len(list(tmp_path.glob("seed-*"))) == 17
    covered = [int(match) for match in re.findall(r"cov: (\d+)", told.stderr)]
    assert covered[-1] > 500
