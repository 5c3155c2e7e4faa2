"""The digits that the explorer trains on are those of the repository that they come from."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "web" / "data" / "make.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("explorer_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _load()


def test_the_file_holds_the_data_that_were_checked() -> None:
    data = make.unpacked(make.TO.read_text(encoding="utf-8"))
    assert hashlib.sha256(data).hexdigest() == make.SHA256
    images, labels = data[: make.COUNT * make.PIXELS], data[make.COUNT * make.PIXELS :]
    assert max(images) == 16
    # As many of each digit as the repository says of its test set.
    assert [Counter(labels)[digit] for digit in range(10)] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert make.TO.stat().st_size < 80_000


def test_the_file_is_what_the_script_makes() -> None:
    try:
        metadata.distribution("scikit-learn")
    except metadata.PackageNotFoundError:
        pytest.skip("scikit-learn, which has the digits, is not installed")
    # Compressed bytes depend on the library that compresses.
    assert make.unpacked(make.packed(make.read())) == make.unpacked(make.TO.read_text(encoding="utf-8"))
