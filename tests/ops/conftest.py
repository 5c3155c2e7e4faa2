"""The same numbers at each run: bounds on rounding hold for most draws, and not for all."""

import pytest
import torch

from levada.ops import _ahead, _reading


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch):
    """Count how often streams are read by an operation."""
    found = []
    real = _reading._Read.apply
    monkeypatch.setattr(_reading._Read, "apply", lambda *given: found.append(1) or real(*given))
    return found


@pytest.fixture
def joined(monkeypatch):
    """Count how often streams are written and read as one node."""
    pytest.importorskip("numba")
    found = []
    real = _ahead._Ahead.apply
    monkeypatch.setattr(_ahead._Ahead, "apply", lambda *given: found.append(1) or real(*given))
    return found
