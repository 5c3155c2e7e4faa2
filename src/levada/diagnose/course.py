"""Short trainings of copies of a model, on the same batches and random numbers for whatever is compared."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, final

import torch
from torch import nn

from levada._errors import MeasurementError
from levada._seeding import reseed
from levada.diagnose.loss import Loss
from levada.diagnose.remedies import Patch
from levada.diagnose.update import Factory
from levada.inputs import Batch, each_tensor, raised, tensors_in

__all__ = ["Clock", "Course", "Spent", "Training", "copied"]

# Half of a single batch at every step, so that the order of the data differs between seeds.
SHARE = 0.5
LEAST_ROWS = 4
# A training whose loss climbs by more than this times its start, or the loss of zeros, has lost what it had learned.
SPIKE = 1.0


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
        start: loss on all batches before it, of what it is judged by.
        losses: loss of each step, on that step's rows; infinite from the first one that is not finite.
        end: loss on all batches after it; infinite if the training did not stay finite.
    """

    start: float
    losses: tuple[float, ...]
    end: float

    @property
    def settled(self) -> float:
        """The worse of the loss at the end and of the median over the last quarter of the steps.

        Example:
            >>> Course(2.0, (2.0, 1.0, 0.5, 4.0), 0.4).settled
            4.0
        """
        return max(self.end, median(self.losses[-max(1, len(self.losses) // 4) :])) if self.losses else self.end

    def spikes(self, floor: float) -> bool:
        """Return whether the loss is ever no number, or climbs by as much as it is with nothing learned.

        A climb within the first quarter of the steps, while the optimizer settles, does not count.

        Args:
            floor: the loss of outputs of zero; 0 if not known.

        Example:
            >>> wild, tame = (2.0, 0.1, 2.5, 0.1), (0.9, 2.0, 0.5, 0.6)
            >>> Course(2.0, wild, 0.1).spikes(2.0), Course(2.0, tame, 0.6).spikes(2.0)
            (True, False)
        """
        least, size, settling = math.inf, SPIKE * max(abs(self.start), floor), len(self.losses) // 4
        for step, value in enumerate((self.start, *self.losses, self.end)):
            if not math.isfinite(value) or (step > settling + 1 and value - least > size):
                return True
            least = min(least, value)
        return False


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

    def __call__(
        self, model: nn.Module, patch: Patch, seed: int, steps: int, clock: Clock, judge: Loss | None = None
    ) -> Course:
        """Train a model, and return how it went. Steps of equal seed see the same rows and random numbers.

        Args:
            model: trained in place.
            patch: what is changed about the loss, the optimizer and a step; its model is the one given.
            seed: of the rows and of every step.
            steps: how many.
            clock: stops it.
            judge: the loss that is told of every step, of the start and of the end; what is lowered if None.

        Raises:
            Spent: if the time is over.
        """
        lowered = patch.adjust(self.loss)
        judge = judge or lowered
        batches = [self.fitted(batch, model) for batch in self.batches]
        generator = torch.Generator().manual_seed(seed % 2**63)
        parameters = [p for p in model.parameters() if p.requires_grad]
        start = _evaluated(judge, model, batches, seed)
        if not parameters:
            return Course(start, (start,) * steps, start)
        optimizer = patch.prepare(self.factory(parameters), parameters)
        losses: list[float] = []
        for step in range(steps):
            if clock.left <= 0:
                raise Spent
            batch = _drawn(batches, generator)
            reseed((seed * 100_003 + step) % 2**63)
            optimizer.zero_grad()
            outputs = model(*batch.args, **batch.kwargs)
            value = lowered(outputs, batch)
            losses.append(float(value.detach()))
            if math.isfinite(losses[-1]) and judge is not lowered:
                with torch.no_grad():
                    losses[-1] = float(judge(outputs, batch))
            if not math.isfinite(losses[-1]):
                break
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        lost = steps - len(losses)
        if losses and not math.isfinite(losses[-1]):
            return Course(start, (*losses[:-1], *[math.inf] * (lost + 1)), math.inf)
        end = _evaluated(judge, model, batches, seed)
        return Course(start, tuple(losses), end if math.isfinite(end) else math.inf)

    def fitted(self, batch: Batch, model: nn.Module) -> Batch:
        """Return a batch in the number type of a copy, if a remedy changed it.

        Args:
            batch: as it was given.
            model: the copy.
        """
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), self.dtype)
        return batch if dtype == self.dtype else _mapped(batch, lambda t: t.to(dtype) if t.is_floating_point() else t)


def _evaluated(judge: Loss, model: nn.Module, batches: Sequence[Batch], seed: int) -> float:
    reseed(seed % 2**63)
    with torch.no_grad():
        values = [float(judge(model(*b.args, **b.kwargs), b)) for b in batches]
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
