"""A model of the zoo, the data it is given, and its training."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.program import Setup
from levada.inputs import read_batches
from levada.study import data

__all__ = ["Entry", "adamw", "digits", "held_out", "loss_of", "optimizer", "pixels", "sgd", "signals", "text", "train"]

Factory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
CHARACTERS = 5  # the first token of the text; those below it are special


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: "library/architecture", unique; its hash decides the split.
        build: makes model, batches, loss and optimizer; called under a seed.
        data: what the batches are.
        steps: optimizer steps between the two checks.
        warmup: steps over which the learning rate rises to the optimizer's.
        first: learning rate of the first step over the optimizer's.
        clip: largest norm of the gradient; None if it is not clipped.
        between: called with the model after every step.
    """

    name: str
    build: Callable[[], Setup]
    data: str
    steps: int = 30
    warmup: int = 0
    first: float = 0.0
    clip: float | None = None
    between: Callable[[nn.Module], None] | None = None

    def factory(self, setup: Setup, step: int) -> Factory:
        """Return what builds the optimizer as a script has it at `step`: where its rate warms up, with a scheduler."""

        def build(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            built = setup.optimizer(parameters)
            if self.warmup:
                torch.optim.lr_scheduler.LambdaLR(built, lambda _: self.factor(step))
            return built

        return build

    def factor(self, step: int) -> float:
        """Return the learning rate of a step over the optimizer's."""
        return 1.0 if step >= self.warmup else self.first + (1 - self.first) * step / self.warmup


def held_out(name: str) -> bool:
    """Return whether an entry belongs to the third that is held out: the first byte of its name's SHA-256.

    >>> [held_out(name) for name in ("timm/resnet18", "timm/densenet121", "transformers/t5")]
    [False, True, True]
    """
    return hashlib.sha256(name.encode()).digest()[0] < 85


def loss_of(setup: Setup, item: Any) -> Tensor:
    """Return the loss of one batch."""
    batch = read_batches(setup.model, item, "zoo")[0]
    outputs = setup.model(*batch.args, **batch.kwargs)
    return getattr(outputs, "loss", outputs) if setup.loss == "output" else setup.loss(outputs, batch.targets)


def mean_loss(setup: Setup) -> float:
    """Return the mean loss over the batches, in the mode of training; buffers stay as they are."""
    torch.manual_seed(0)
    held = {name: b.clone() for name, b in setup.model.named_buffers()}
    values = [float(loss_of(setup, item).detach()) for item in setup.batches]
    with torch.no_grad():
        for name, buffer in setup.model.named_buffers():
            buffer.copy_(held[name])
    return sum(values) / len(values)


def train(entry: Entry, setup: Setup, seed: int) -> tuple[float, float]:
    """Train as the entry says; return the mean loss before and after."""
    start = mean_loss(setup)
    torch.manual_seed(seed)
    optimizer = setup.optimizer([p for p in setup.model.parameters() if p.requires_grad])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, entry.factor)
    for step in range(entry.steps):
        optimizer.zero_grad()
        loss_of(setup, setup.batches[step % len(setup.batches)]).backward()
        if entry.clip is not None:
            nn.utils.clip_grad_norm_(setup.model.parameters(), entry.clip)
        optimizer.step()
        schedule.step()
        if entry.between is not None:
            entry.between(setup.model)
    return start, mean_loss(setup)


def optimizer(kind: str, **options: Any) -> Factory:
    """Return what builds an optimizer of `torch.optim`."""
    return functools.partial(getattr(torch.optim, kind), **options)


def adamw(lr: float = 1e-3, weight_decay: float = 0.05, **options: Any) -> Factory:
    """Return AdamW, as transformers are trained."""
    return optimizer("AdamW", lr=lr, weight_decay=weight_decay, **options)


def sgd(lr: float = 0.05, weight_decay: float = 1e-4) -> Factory:
    """Return SGD with Nesterov's momentum, as convolutional networks are trained."""
    return optimizer("SGD", lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)


_mnist, _mnist1d, _bible = (functools.cache(read) for read in (data.mnist, data.mnist1d, data.king_james))


def digits(size: int = 28, rows: int = 16, batches: int = 6, standardised: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Return images of MNIST and their labels, of one channel, `size` pixels wide; in [0, 1] if not standardised."""
    known = _mnist()
    choice = torch.randperm(len(known.train_inputs))[: rows * batches]
    images = known.train_inputs[choice].float().reshape(-1, 1, 28, 28) / 255
    if size != 28:
        images = nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    images = (images - 0.1307) / 0.3081 if standardised else images
    labels = known.train_targets[choice]
    return list(zip(images.split(rows), labels.split(rows), strict=True))


def pixels(rows: int = 32, size: int = 28) -> list[Tensor]:
    """Return images in [0, 1]."""
    return [x for x, _ in digits(size, rows, standardised=False)]


def signals(rows: int = 32, batches: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Return signals of MNIST-1D, 40 steps of one channel, and their labels."""
    known = _mnist1d()
    choice = torch.randperm(len(known.train_inputs))[: rows * batches]
    inputs = known.train_inputs[choice][..., None]
    inputs = (inputs - inputs.mean()) / inputs.std()
    return list(zip(inputs.split(rows), known.train_targets[choice].split(rows), strict=True))


def text(length: int = 64, rows: int = 8, batches: int = 6) -> Sequence[Tensor]:
    """Return windows of the King James Bible, character by character, from token `CHARACTERS` on."""
    tokens = _bible().train
    starts = torch.randint(len(tokens) - length, (rows * batches,))
    return (tokens[starts[:, None] + torch.arange(length)] + CHARACTERS).split(rows)


def books(length: int = 64, rows: int = 16, batches: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Return windows of the King James Bible, and which third of it each comes from."""
    tokens = _bible().train
    third = (len(tokens) - length) // 3
    labels = torch.randint(3, (rows * batches,))
    starts = labels * third + torch.randint(third, labels.shape)
    windows = tokens[starts[:, None] + torch.arange(length)] + CHARACTERS
    return list(zip(windows.split(rows), labels.split(rows), strict=True))
