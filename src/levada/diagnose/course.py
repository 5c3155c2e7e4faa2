"""Short trainings of copies of a model, on the same batches and random numbers for whatever is compared."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import nn

from levada._errors import MeasurementError
from levada.diagnose.loss import Loss
from levada.diagnose.remedies import Patch
from levada.diagnose.update import Factory
from levada.inputs import Batch, each_tensor, raised, tensors_in

__all__ = ["Clock", "Course", "Spent", "Training", "copied"]

# Half of a single batch at every step, so that the order of the data differs between seeds.
SHARE = 0.5
LEAST_ROWS = 4


class Spent(Exception):  # noqa: N818  # nothing went wrong
    """The time is over."""


@final
class Clock:
    """Seconds from its making to a deadline.

    Args:
        budget: how many.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.start = time.perf_counter()
        self.deadline = self.start + budget

    @property
    def left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.perf_counter()

    @property
    def passed(self) -> float:
        """Seconds since its making."""
        return time.perf_counter() - self.start


@dataclass(frozen=True, slots=True)
class Course:
    """How one training went.

    Attributes:
        start: loss on all batches before it.
        losses: loss of each step, on that step's rows; infinite from the first one that is not finite.
        end: loss on all batches after it; infinite if the training did not stay finite.
    """

    start: float
    losses: tuple[float, ...]
    end: float


@final
@dataclass(frozen=True, slots=True)
class Training:
    """What a model is trained with.

    Attributes:
        loss: what is lowered.
        batches: what it is lowered on.
        factory: builds the optimizer.
        dtype: number type of the model as it is; the inputs of a copy that has another one are given in that.
    """

    loss: Loss
    batches: Sequence[Batch]
    factory: Factory
    dtype: torch.dtype

    def __call__(self, model: nn.Module, patch: Patch, seed: int, steps: int, clock: Clock) -> Course:
        """Train a model, and return how it went. Steps of equal seed see the same rows and random numbers.

        Args:
            model: trained in place.
            patch: what is changed about the optimizer and about a step; its model is the one given.
            seed: of the rows and of every step.
            steps: how many.
            clock: stops it.

        Raises:
            Spent: if the time is over.
        """
        batches = [self.fitted(batch, model) for batch in self.batches]
        generator = torch.Generator().manual_seed(seed % 2**63)
        parameters = [p for p in model.parameters() if p.requires_grad]
        start = self._evaluate(model, batches, seed)
        if not parameters:
            return Course(start, (start,) * steps, start)
        optimizer = patch.prepare(self.factory(parameters), parameters)
        losses: list[float] = []
        for step in range(steps):
            if clock.left <= 0:
                raise Spent
            batch = _drawn(batches, generator)
            torch.manual_seed((seed * 100_003 + step) % 2**63)
            optimizer.zero_grad()
            value = self.loss(model(*batch.args, **batch.kwargs), batch)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                break
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        lost = steps - len(losses)
        if losses and not math.isfinite(losses[-1]):
            return Course(start, (*losses[:-1], *[math.inf] * (lost + 1)), math.inf)
        end = self._evaluate(model, batches, seed)
        return Course(start, tuple(losses), end if math.isfinite(end) else math.inf)

    def fitted(self, batch: Batch, model: nn.Module) -> Batch:
        """Return a batch in the number type of a copy, if a remedy changed it.

        Args:
            batch: as it was given.
            model: the copy.
        """
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), self.dtype)
        return batch if dtype == self.dtype else _mapped(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)

    def _evaluate(self, model: nn.Module, batches: Sequence[Batch], seed: int) -> float:
        torch.manual_seed(seed % 2**63)
        with torch.no_grad():
            values = [float(self.loss(model(*b.args, **b.kwargs), b)) for b in batches]
        return sum(values) / len(values)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, without gradients.

    Args:
        model: left as it is.

    Raises:
        MeasurementError: if it cannot be copied.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise MeasurementError(
            f"fix: a remedy is tried on a copy of the model, and copy.deepcopy raised {raised(error)}"
        ) from error
    for p in twin.parameters():
        p.grad = None
    return twin


def _drawn(batches: Sequence[Batch], generator: torch.Generator) -> Batch:
    """Draw one of several batches, or half of the rows of a single one whose tensors all have them."""
    if len(batches) > 1:
        return batches[int(torch.randint(len(batches), (), generator=generator))]
    (batch,) = batches
    found = [*batch.tensors(), *tensors_in(batch.targets)]
    counts = {len(t) if t.dim() else 0 for t in found}
    rows = counts.pop()
    if counts or rows < LEAST_ROWS:
        return batch
    chosen = torch.randperm(rows, generator=generator)[: math.ceil(SHARE * rows)]
    return _mapped(batch, lambda t: t[chosen.to(t.device)])


def _mapped(batch: Batch, function: Any) -> Batch:
    return replace(
        batch,
        args=tuple(each_tensor(a, function) for a in batch.args),
        kwargs={k: each_tensor(a, function) for k, a in batch.kwargs.items()},
        targets=each_tensor(batch.targets, function),
    )
