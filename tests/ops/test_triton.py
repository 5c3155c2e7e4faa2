"""The Triton kernels, interpreted, and compiled for GPUs that are not there: a process for each of the two."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

FILES = sorted([*Path(__file__).parent.glob("interpreted*.py"), *Path(__file__).parent.glob("compiled*.py")])
# These need none of the plugins that pytest would find, and import: it took longer than most of the files.
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@cache
def ran(way):
    """Whether Triton interprets its kernels is settled when it is imported."""
    files = [str(file) for file in FILES if file.stem.startswith(way)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "pytest_timeout", *files],
        env={**os.environ, **ALONE, "TRITON_INTERPRET": str(int(way == "interpreted"))},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(1800)  # as long as any of them may take, of which the first waits for all
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernels(file):
    pytest.importorskip("triton")
    run = ran(file.stem.partition("_")[0])
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(rf"/{file.name}::.* PASSED", run.stdout)
