"""A few steps of training on the model itself, undone afterwards: what the optimizer does to the loss at this rate."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose.update import Factory

__all__ = ["REHEARSAL", "STEPS", "Course", "judged", "rehearse", "undone"]

# Enough for Adam's moments to settle, few enough to cost less than the measurement.
STEPS = 10
REHEARSAL = f"{STEPS} steps of training at the rate that was chosen, and at others if those gain little"


@dataclass(frozen=True, slots=True)
class Course:
    """Losses of a few steps on one batch, or on several in turn.

    Attributes:
        losses: before each step and after the last; fewer if time ran out, a loss was not finite, or enough was seen.
        scale: factor on the learning rate.
        aside: losses of what was not trained on, before the first step and after the last; empty if not asked for.
        steps: how many were to be made.
        lr: the learning rate, of the first group; NaN if not known.
        batches: how many were taken in turn.
    """

    losses: tuple[float, ...]
    scale: float = 1.0
    aside: tuple[float, ...] = ()
    steps: int = STEPS
    lr: float = math.nan
    batches: int = 1

    @property
    def complete(self) -> bool:
        """Whether every step was made, or the loss ended the attempt by being no number."""
        return len(self.losses) == self.steps + 1 or not math.isfinite(self.losses[-1])

    @property
    def end(self) -> float:
        """The median of the last three losses, or means over all batches; infinite if one is not finite."""
        count = min(3, len(self.losses) // self.batches)
        last = self.losses[len(self.losses) - count * self.batches :] if count else self.losses
        if not all(math.isfinite(value) for value in last):
            return math.inf
        rounds = sorted(statistics.fmean(last[i : i + self.batches]) for i in range(0, len(last), self.batches))
        return rounds[len(rounds) // 2]

    @property
    def gain(self) -> float:
        """How far the loss fell."""
        return self.losses[0] - self.end

    @property
    def late(self) -> float:
        """How far the loss fell in the second half of the steps."""
        half = self.losses[: len(self.losses) // 2]
        return statistics.fmean(half[-min(self.batches, len(half)) :]) - self.end

    @property
    def shared(self) -> float | None:
        """How far the loss aside fell, over how far that of the batch fell; None if that did not, or was not asked."""
        fell = self.losses[0] - self.losses[-1]
        return (self.aside[0] - self.aside[1]) / fell if len(self.aside) == 2 and fell > 0 else None


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Give parameters, buffers and gradients back their values on leaving.

    Args:
        model: the model.
    """
    tensors = [*model.parameters(), *model.buffers()]
    held = [t.detach().clone() for t in tensors]
    gradients = [(p, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, held, strict=True):
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def rehearse(
    model: nn.Module,
    objective: Callable[[], Tensor],
    factory: Factory,
    deadline: float,
    scale: float = 1.0,
    aside: Callable[[], Tensor] | None = None,
    until: Callable[[Sequence[float]], bool] | None = None,
    steps: int = STEPS,
) -> Course | None:
    """Return the losses of a few steps, or None if the model or the optimizer refuses.

    Args:
        model: the model, which comes back as it was.
        objective: runs the model on the batch and returns the loss, from the same random state each time.
        factory: builds the optimizer.
        deadline: time at which no further step begins.
        scale: factor on the learning rate.
        aside: another loss, to see before the first step and after the last.
        until: the steps end, and the course is not complete, once this is true of the losses so far.
        steps: how many to make.
    """
    losses: list[float] = []
    beside: list[float] = []
    with undone(model):
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        try:
            beside.extend(_values(aside))
            value = objective()
            _differentiate(value, learning)
            optimizer = factory(list(learning.values()))
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * scale
            for step in range(steps + 1):
                losses.append(float(value.detach()))
                if step == steps or not math.isfinite(losses[-1]):
                    break
                if until is not None and until(losses):
                    break
                if time.perf_counter() > deadline:
                    break
                optimizer.step()
                value = objective()
                _differentiate(value, learning)
            beside.extend(_values(aside))
        except (RuntimeError, ValueError, TypeError, UsageError, MeasurementError):
            return None  # for example an optimizer that needs a closure; first_update has said so
    return Course(tuple(losses), scale, tuple(beside), steps, float(optimizer.param_groups[0]["lr"]))


def judged(asked: Collection[str], standardised: bool) -> tuple[str, ...]:
    """Return the rules that rehearsals are made for.

    Args:
        asked: names of the rates that there is a reason to try: "lower", "higher".
        standardised: whether one is made on standardised inputs.

    Example:
        >>> judged(["lr", "lower"], standardised=False)
        ('learning_rate_too_high',)
    """
    rules = {"learning_rate_too_high": "lower" in asked, "learning_rate_too_low": "higher" in asked}
    return tuple(rule for rule, need in {**rules, "unscaled_input": standardised}.items() if need)


def _values(objective: Callable[[], Tensor] | None) -> list[float]:
    if objective is None:
        return []
    with torch.no_grad():
        return [float(objective())]


def _differentiate(value: Tensor, learning: Mapping[str, nn.Parameter]) -> None:
    found = torch.autograd.grad(value, list(learning.values()), allow_unused=True)
    for parameter, gradient in zip(learning.values(), found, strict=True):
        parameter.grad = gradient
