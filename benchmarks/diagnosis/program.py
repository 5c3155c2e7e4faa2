"""A training program: a model, its data, loss and optimizer, and what was done to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Program", "Setup", "held_out", "train"]


@dataclass(slots=True)
class Setup:
    """What a training script has before its loop.

    Attributes:
        model: in the mode in which the loop runs it.
        batches: training batches, `(inputs, targets)` each.
        loss: callable of outputs and targets, or a name that `check` takes.
        optimizer: builds the optimizer from parameters.
        criterion: the loss that both twins are judged by, where a fault is in `loss` itself; `loss` if None.
        zero_grad: whether the loop clears gradients.
        data: the batches that both twins are judged on, where a fault is in `batches`; `batches` if None.
    """

    model: nn.Module
    batches: Sequence[tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    criterion: Callable[[Any, Any], Tensor] | None = None
    zero_grad: bool = True
    data: Sequence[tuple[Any, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """One program of a suite.

    Attributes:
        name: "architecture/operator", unique; its hash decides the split.
        architecture: name of the architecture and its variant, e.g. "mlp-20-relu-sgd".
        family: "mlp", "cnn", "resnet", "transformer", "vit", "lstm", "gru", "rnn" or "autoencoder".
        build: seed -> the setup; the same seed gives a program and its twin the same data and the same draws.
        operator: name of the mutation; "" if there is none: a healthy twin.
        causes: rules any of which names the planted cause; empty for a healthy twin.
        place: the site at which the fault was planted, as `check` names it; "" if it is nowhere in particular.
        draw: 1, or 2 if it was drawn after the rules had been mended by what they missed of the first draw.
    """

    name: str
    architecture: str
    family: str
    build: Callable[[int], Setup]
    operator: str = ""
    causes: frozenset[str] = field(default_factory=frozenset)
    place: str = ""
    draw: int = 1

    @property
    def healthy(self) -> bool:
        """Whether nothing was planted."""
        return not self.operator

    @property
    def split(self) -> str:
        """The programs that it is counted among: "calibration", "held out", or "fresh": held out of the second draw."""
        return "calibration" if not held_out(self.name) else "fresh" if self.draw > 1 else "held out"


def held_out(name: str) -> bool:
    """Return whether a program belongs to the held-out half: the first bit of its name's SHA-256.

    >>> [held_out(name) for name in ("mlp-6/dead_bias", "mlp-4")]
    [True, False]
    """
    return hashlib.sha256(name.encode()).digest()[0] >= 128


def train(setup: Setup, steps: int, seed: int) -> tuple[float, float]:
    """Train by the setup's own loop; return the criterion before and after it, the mean over the judged batches.

    Args:
        setup: is trained in place.
        steps: optimizer steps; the batches are taken in turn.
        seed: of random numbers inside the model.
    """
    torch.manual_seed(seed)
    optimizer = setup.optimizer(setup.model.parameters())
    start = judge(setup)
    for step in range(steps):
        inputs, targets = setup.batches[step % len(setup.batches)]
        if setup.zero_grad:
            optimizer.zero_grad()
        value = setup.loss(setup.model(inputs), targets)
        if value.requires_grad and bool(torch.isfinite(value)):
            value.backward()
            optimizer.step()
    return start, judge(setup)


def judge(setup: Setup) -> float:
    """Return the criterion on the judged batches in the mode of training; infinite if it is not finite."""
    criterion = setup.criterion or setup.loss
    torch.manual_seed(0)
    held = {name: b.clone() for name, b in setup.model.named_buffers()}
    with torch.no_grad():
        values = [float(criterion(setup.model(inputs), targets)) for inputs, targets in setup.data or setup.batches]
        for name, buffer in setup.model.named_buffers():
            buffer.copy_(held[name])
    value = sum(values) / len(values)
    return value if value == value else float("inf")
