"""Ctrl-C at any moment of a check or a repair: the model and the random numbers come back as they were."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import levada

HOOKS = [name for name in vars(nn.Module()) if name.endswith("hooks") or "hooks_" in name]


class Counted(torch.autograd.Function):
    """Hands a signal on, and interrupts one backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, owner) -> Tensor:
        ctx.owner = owner
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.owner.count("backward")
        return gradient, None


class Interrupted(nn.Module):
    """Raises what Ctrl-C raises in its n-th forward or backward pass; copies count on together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [m for _ in range(11) for m in (nn.Linear(8, 8), nn.Tanh())]
        norms = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.net = nn.Sequential(*layers, *norms, nn.Dropout(0.1), nn.Linear(8, 3))
        self.net[-1].weight.requires_grad_(False)
        self.calls = {"forward": 0, "backward": 0}
        self.at: tuple[str, int] = ("", 0)

    def count(self, way: str) -> None:
        self.calls[way] += 1
        if self.at == (way, self.calls[way]):
            raise KeyboardInterrupt

    def __deepcopy__(self, memo):
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(
            {key: copy.deepcopy(value, memo) for key, value in self.__dict__.items() if key != "calls"}
        )
        twin.__dict__["calls"] = self.calls
        return twin

    def forward(self, x: Tensor) -> Tensor:
        half = self.net[:12](x)
        self.count("forward")
        return self.net[12:](Counted.apply(half, self))


X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
BATCH = (X, torch.arange(16) % 3)


def made():
    net = Interrupted()
    net.register_forward_hook(lambda *_: None)
    net(X).sum().backward()  # gradients, and running statistics that are not those of the start
    net.calls.update(forward=0, backward=0)
    net.net[22].eval()  # one of two normalisations, so that the output in training mode is looked at too
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(17)  # not the seed that a check takes
    return net


def state(net):
    """Everything that must come back: the same objects with the same bits."""
    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters() if p.grad is not None)]
    return {
        "objects": [id(t) for t in tensors],
        "bits": [t.detach().clone() for t in tensors],
        "asks": [p.requires_grad for p in net.parameters()],
        "modes": [m.training for m in net.modules()],
        "hooks": [{name: dict(getattr(m, name)) for name in HOOKS} for m in net.modules()],
        "methods": [sorted(vars(m)) for m in net.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
        "grad": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    for key in ("objects", "asks", "modes", "hooks", "methods", "grad"):
        assert before[key] == after[key], key
    assert all(torch.equal(a, b) for a, b in zip(before["bits"], after["bits"], strict=True))
    assert torch.equal(before["random"][0], after["random"][0])
    assert before["random"][1:] == after["random"][1:]


HOW = {"optimizer": "SGD", "lr": 50.0}  # a rate that gives reason for the longest tests


def passes(function, **how):
    """How many passes of each kind an undisturbed call makes."""
    net = made()
    function(net, BATCH, **how)
    return net.calls


CHECKED = passes(levada.check, **HOW)


def several(count: int, most: int = 12) -> list[int]:
    return sorted({1, 2, 3, 4, 5, *range(1, count + 1, max(1, count // most)), count - 1, count})


@pytest.mark.parametrize(
    ("way", "n"), [(way, n) for way in ("forward", "backward") for n in several(CHECKED[way]) if n <= CHECKED[way]]
)
def test_a_check_that_is_interrupted_leaves_everything_as_it_was(way, n):
    net = made()
    net.at = way, n
    before = state(net)
    with pytest.raises(KeyboardInterrupt):
        levada.check(net, BATCH, **HOW)
    assert net.calls[way] == n, "it went on after the interruption"
    assert_same(before, state(net))


@pytest.mark.parametrize(("way", "n"), [(w, n) for w in ("forward", "backward") for n in (1, 9, 40, 300)])
def test_a_repair_that_is_interrupted_leaves_everything_as_it_was(way, n):
    net = made()
    net.at = way, n
    before = state(net)
    with pytest.raises(KeyboardInterrupt):
        levada.fix(net, BATCH, steps=50, **HOW)
    assert net.calls[way] == n, "it went on after the interruption"
    assert_same(before, state(net))


PROGRAM = """
import os, signal
import torch
from torch import nn

# A shell's background jobs, and their children, begin with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.calls = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), 0

    def forward(self, x):
        self.calls += 1
        if self.calls == {n}:
            os.kill(os.getpid(), signal.SIGINT)
        return self.net(x)


def net():
    return Net()


def batch():
    return torch.randn(8, 4), torch.arange(8) % 2
"""


@pytest.mark.parametrize(("command", "n"), [("check", 1), ("check", 4), ("fix", 3), ("fix", 40)])
def test_ctrl_c_on_the_command_line_is_one_sentence_and_130(tmp_path, command, n):
    (tmp_path / "net.py").write_text(textwrap.dedent(PROGRAM.replace("{n}", str(n))))
    words = [command, "net.py:net", "--batch", "net.py:batch", "--json", "out.json", "--optimizer", "SGD", "--lr", "99"]
    run = subprocess.run(
        [sys.executable, "-m", "levada", *words], capture_output=True, text=True, cwd=tmp_path, env={**os.environ}
    )
    assert run.returncode == 128 + signal.SIGINT
    assert "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1] == f"levada {command}: interrupted; nothing was written."
    assert not (tmp_path / "out.json").exists()
