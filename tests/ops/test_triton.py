"""The Triton kernels, interpreted, and compiled for GPUs that are not there: a process for each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted([*Path(__file__).parent.glob("interpreted*.py"), *Path(__file__).parent.glob("compiled*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernels(file):
    """Whether Triton interprets its kernels is settled when it is imported."""
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": str(int(file.stem.startswith("interpreted")))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout
