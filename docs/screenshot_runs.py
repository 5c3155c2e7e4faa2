"""The runs on the pictures of the pages: a network that learns, one that does not, its check and repair, a study."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import levada
from levada.cli import main as levada_command
from levada.study.data import mnist

__all__ = ["NAMES", "make_runs"]

NAMES = ("check", "plain", "residual", "R1-smoke")
_ROOT = Path(__file__).parents[1]
_EXAMPLE = "examples/deep_mlp.py"
_DEPTH, _DIM, _STEPS = 40, 64, 300


def make_runs(folder: Path) -> list[Path | dict[str, Any]]:
    """Make the runs of `NAMES` below a folder, and a repair beside them; what is there already stays.

    Args:
        folder: of the runs.

    Returns:
        What a report can be made of.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    given = [f"{_EXAMPLE}:plain", "--batch", f"{_EXAMPLE}:batch", "--optimizer", "SGD", "--lr", "0.03"]
    repair = folder / "fix.json"
    made = {
        "check": ["check", *given, "--fail-on", "never", "--run", str(folder / "check")],
        "R1-smoke": ["study", "R1", "--scale", "smoke", "--out", str(folder)],
    }
    with contextlib.chdir(_ROOT):  # so that a run names its model by a path that is the same everywhere
        if not repair.exists():
            # As many steps as the usual budget allows on two cores, and time for them where others are at work.
            levada_command(
                ["fix", *given, "--fail-on", "never", "--steps", "50", "--budget", "1200", "--json", str(repair)]
            )
        for name in NAMES:
            if (folder / name).exists():
                continue
            if name in made:
                levada_command(made[name])
            else:
                _train(name, folder / name)
    return [json.loads(repair.read_text(encoding="utf-8")), *(folder / name for name in NAMES)]


def _network(connection: str) -> nn.Module:
    branches = [nn.Sequential(nn.ReLU(), nn.Linear(_DIM, _DIM)) for _ in range(_DEPTH)]
    if connection == "plain":
        body = levada.Stack(branches, levada.Plain, dim=_DIM)
    else:
        body = levada.Stack(branches, levada.SkipInit, dim=_DIM, init="depth")
    return nn.Sequential(nn.Linear(784, _DIM), body, nn.Linear(_DIM, 10))


def _train(connection: str, run: Path) -> None:
    """Train on MNIST, watched; the plain network has PyTorch's own initialisation."""
    torch.manual_seed(0)
    data = mnist()
    images = (data.train_inputs.flatten(1) / 255 - 0.1307) / 0.3081
    model = _network(connection)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    with levada.watch(model, optimizer, run=run, every=3, max_overhead=0.5):
        for _ in range(_STEPS):
            rows = torch.randint(len(images), (64,))
            loss = nn.functional.cross_entropy(model(images[rows]), data.train_targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    make_runs(Path(sys.argv[1]))
