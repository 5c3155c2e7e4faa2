"""A change as a diff of the file that builds the model: applied by git, it gives the model that was verified."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest

from levada.diagnose.source import diff

CODE = "import math\nmodel = [math.pi, *model]"
TAKEN = {
    "a function": ("def build():\n    return [1]\n", "build"),
    "code around it": ("import os\n\n\ndef build():\n    math = 1\n    return [math]\n\n\nlast = build()\n", "build"),
    "several returns": (
        "def build(deep=False):\n    if deep:\n        return [2]\n    return (\n        [1]\n    )\n",
        "build",
    ),
    "a function inside": ("def build():\n    def inner():\n        return 3\n    return [inner() - 2]\n", "build"),
    "a variable": ("net = [2]\nnet = [\n    1,\n]  # here\n", "net"),
    "no last newline": ("net = [1]", "net"),
    "windows": ("def build():\r\n    return [1]\r\n", "build"),
    "letters": ("def build():\n    'é'; return ['ü', 1][1:]\n", "build"),
    "the name is taken": ("def _repaired(x):\n    return x\n\ndef build():\n    return _repaired([1])\n", "build"),
}
LEFT = {
    "a class": ("class build:\n    pass\n", "build"),
    "imported": ("from os import getcwd as build\n", "build"),
    "decorated": ("import functools\n@functools.cache\ndef build():\n    return [1]\n", "build"),
    "nothing returned": ("def build():\n    return\n", "build"),
    "a generator": ("def build():\n    yield 1\n    return [1]\n", "build"),
    "no such name": ("x = 1\n", "build"),
    "not Python": ("def build(:\n", "build"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_git_applies_it_and_it_gives_the_changed_value(case, tmp_path):
    text, name = TAKEN[case]
    file = tmp_path / "nets.py"
    file.write_bytes(text.encode())
    found = diff(file, name, CODE, "nets.py")
    (tmp_path / "x.patch").write_bytes(found.encode())
    run = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "x.patch"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr + found
    spec = importlib.util.spec_from_file_location("nets", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    value = getattr(module, name)
    assert (value() if callable(value) else value) == [pytest.approx(3.14159, abs=1e-5), 1]


@pytest.mark.parametrize("case", LEFT)
def test_where_the_file_does_not_say_it_there_is_no_diff(case, tmp_path):
    text, name = LEFT[case]
    file = tmp_path / "nets.py"
    file.write_text(text)
    assert diff(file, name, CODE) is None
