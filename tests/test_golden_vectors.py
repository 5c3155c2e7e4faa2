"""The files that the explorer's engine is held to are what PyTorch and levada give today."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "web" / "golden"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_vectors", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _load()


def _compare(where: str, stored: Any, now: Any) -> None:
    """Same keys and lengths; numbers equal by norm to what another machine's rounding may change."""
    if isinstance(now, dict):
        assert stored.keys() == now.keys(), where
        for key, value in now.items():
            _compare(f"{where}.{key}", stored[key], value)
    elif isinstance(now, list) and not all(isinstance(value, (int, float)) for value in now):
        assert len(stored) == len(now), where
        for place, (old, new) in enumerate(zip(stored, now, strict=True)):
            _compare(f"{where}[{place}]", old, new)
    elif isinstance(now, (list, float)):
        old, new = (torch.tensor(value, dtype=torch.float64).flatten() for value in (stored, now))
        assert old.shape == new.shape, where
        scale = max(float(new.norm()), 1e-2)  # less is what is left of terms that cancel
        assert float((old - new).norm()) <= 1e-13 * scale, where
    else:
        assert stored == now, where


@pytest.mark.parametrize("name", make.FILES)
def test_what_is_stored_is_what_is_computed(name: str) -> None:
    stored = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    _compare(name, stored, json.loads(json.dumps(make.made(name))))


def test_the_files_are_small() -> None:
    files = list(GOLDEN.glob("*.json"))
    assert {file.stem for file in files} == {*make.FILES, "report"}  # that of report.py is tested with the report
    assert sum(file.stat().st_size for file in files) < 1e6
