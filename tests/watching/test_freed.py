"""A process that lives long, as a notebook or a server, holds nothing of watches, runs and checks that are over."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import levada
from levada.runs import Run

OWN = tuple(f"levada.{name}" for name in ("diagnose", "probe", "runs", "stacking", "watching"))
SCORED = torch.ones(8, 6), torch.arange(8) % 3


def held() -> Counter[str]:
    """Count the library's own objects that are alive, by their class."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    return Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if str(kind.__module__).startswith(OWN))


def model() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)), nn.Linear(6, 3))


def watched(folder: Path | None = None) -> list[object]:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with levada.watch(net, optimizer, run=folder, every=1, max_overhead=math.inf) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(SCORED[0]), SCORED[1]).backward()
            optimizer.step()
    watch.report()
    return [net, optimizer, watch]


def recorded(folder: Path) -> list[object]:
    folder = folder / str(len(list(folder.iterdir())))
    made, run = watched(folder), Run(folder)
    assert run.signals().steps == (0, 1, 2)
    assert len(list(run.events())) > 0
    return [*made, run]


def checked(folder: Path) -> list[object]:
    net = model()
    levada.check(net, SCORED, budget=60.0)
    return [net]


@pytest.mark.parametrize("act", [lambda folder: watched(), recorded, checked], ids=["watched", "recorded", "checked"])
def test_what_is_over_is_let_go_of(tmp_path: Path, act: Callable[[Path], list[object]]) -> None:
    for _ in range(2):  # what is made once for all
        act(tmp_path)
    before = held()
    gone = [weakref.ref(one) for _ in range(3) for one in act(tmp_path)]
    assert held() - before == Counter()
    assert [one() for one in gone] == [None] * len(gone)
