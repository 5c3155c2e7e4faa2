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


LONGEST = 1700  # seconds for the files of a way together


@cache
def ran(way):
    """Whether Triton interprets its kernels is settled when it is imported. A way that hangs is not tried again."""
    files = [str(file) for file in FILES if file.stem.startswith(way)]
    plain = ["-v", "--color=no", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *plain, *files],
            env={**os.environ, **ALONE, "TRITON_INTERPRET": str(int(way == "interpreted"))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace")
    return run.returncode, run.stdout.decode(errors="replace")


@pytest.mark.timeout(LONGEST + 100)  # as long as any of them may take, of which the first waits for all
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernels(file):
    pytest.importorskip("triton")
    code, said = ran(file.stem.partition("_")[0])
    assert code == 0, f"not done after {LONGEST} s\n{said}" if code is None else said
    assert re.search(rf"/{file.name}::.* PASSED", said)
