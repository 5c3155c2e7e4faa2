"""Trainings of the model as it is, and with one thing of it changed: whether a change would help is tried, not said."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import Course, rehearse
from levada.diagnose.update import Factory
from levada.inputs import Batch

__all__ = ["ORDERS", "STEPS", "TRIALS", "Change", "Trainings", "Trial", "gained"]

STEPS = 60
# Orders of the batches, each with random numbers of its own, in all of which the change must help.
ORDERS = 3
# The loss ends lower by at least this share of what the changed model gains, and of where the model as it is ends.
WORTH, LESS = 0.1, 0.1
TRIALS = f"{STEPS} steps of training beside a changed model"

Change: TypeAlias = Callable[[nn.Module, int], AbstractContextManager[None]]
"""Changes a model for as long as it is entered, by the numbers of a draw."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A change that helps a model to learn.

    Attributes:
        changed: what was changed, in words that follow "with".
        sites: the first and the last block of what was changed.
        measured: what gave the reason, by name.
        pairs: trainings as it is and changed, on the same batches with the same random numbers.
        code: the change, as a patch.
    """

    changed: str
    sites: tuple[str, str]
    measured: dict[str, Any]
    pairs: tuple[tuple[Course, Course], ...]
    code: str = ""

    @property
    def share(self) -> float:
        """What the model gains as it is, over what it gains changed, from the lower start; the mean over orders."""
        return statistics.fmean(gained(*pair) for pair in self.pairs)

    @property
    def ends(self) -> tuple[float, float]:
        """Median losses at the end, as it is and changed."""
        plain, other = zip(*self.pairs, strict=True)
        return statistics.median(c.end for c in plain), statistics.median(c.end for c in other)

    def told(self) -> str:
        """Return what was seen, in a sentence."""
        plain, other = self.ends
        return (
            f"{STEPS} steps take the loss to {plain:.3g}, and to {other:.3g} with {self.changed}: so in each of "
            f"{len(self.pairs)} orders of the batches"
        )

    def losses(self) -> dict[str, list[list[float]]]:
        """Return the losses of all trainings, as they are and changed."""
        plain, other = zip(*self.pairs, strict=True)
        return {"as_it_is": [list(c.losses) for c in plain], "changed": [list(c.losses) for c in other]}


def gained(plain: Course, other: Course, prior: float = math.inf) -> float:
    """Return what one training gains over what the other gains, each from the lower start; 0 if it ends at no number.

    Args:
        plain: of the model as it is.
        other: of the changed one.
        prior: a loss from which they gain, where it is lower than both starts.
    """
    start = min((c.losses[0] for c in (plain, other) if not math.isnan(c.losses[0])), default=math.nan)
    start = min(start, prior)
    whole = start - other.end
    if not (whole > 0 and math.isfinite(other.end)):
        return math.inf
    return (start - plain.end) / whole if math.isfinite(plain.end) else 0.0


@final
@dataclass(slots=True)
class Trainings:
    """Trainings of one model, of which those of the model as it is are made once.

    Args:
        run: the model, which comes back as it was, on its batches.
        loss: of outputs and a batch.
        factory: builds the optimizer.
    """

    run: Run
    loss: Callable[[Any, Batch], Tensor]
    factory: Factory
    _plain: dict[int, Course | None] = field(default_factory=dict)

    def plain(self, order: int) -> Course | None:
        """Train the model as it is; None if it is refused, or time runs out.

        Args:
            order: of the batches, which are taken in turn from this one on.
        """
        if order not in self._plain:
            self._plain[order] = self._course(order, None)
        return self._plain[order]

    def compare(self, change: Change, most: float = 1.0, prior: float = math.inf) -> tuple[tuple[Course, Course], ...]:
        """Train with and without a change; nothing unless it helps in all orders.

        Args:
            change: enters the change.
            most: share of the changed model's gain below which the mean share of the model as it is must be.
            prior: loss below which a gain counts, where it is lower than the start.

        Cost:
            Two trainings of `STEPS` steps, and four more where the first two say that it helps.
        """
        pairs: list[tuple[Course, Course]] = []
        for order in range(ORDERS):
            if not self.run.pace.allows(TRIALS, 2 * STEPS + 2, 2 * STEPS + 2):
                return ()
            plain = self.plain(order)
            # A loss that has fallen so far, and falls no lower than to zero, leaves nothing to be shown.
            if plain is None or (most < 1 and min(plain.losses[0], prior) - plain.end >= most * abs(plain.losses[0])):
                return ()
            other = self._course(order, change)
            if other is None or not _better(plain, other):
                return ()
            pairs.append((plain, other))
        return tuple(pairs) if statistics.fmean(gained(*pair, prior) for pair in pairs) < most else ()

    def _course(self, order: int, change: Change | None) -> Course | None:
        run, count = self.run, len(self.run.batches)
        turns = itertools.cycle((order + i) % count for i in range(count))

        def objective() -> Tensor:
            index = next(turns)
            return self.loss(run(index, draw=order), run.batches[index])

        try:
            with change(run.model, order) if change is not None else nullcontext():
                made = rehearse(run.model, objective, self.factory, run.pace.deadline, steps=STEPS)
        except (RuntimeError, ValueError, TypeError, AttributeError):
            return None  # a change that the model does not take
        return replace(made, batches=count) if made is not None and made.complete else None


def _better(plain: Course, other: Course) -> bool:
    if not math.isfinite(other.end):
        return False
    start = min((c.losses[0] for c in (plain, other) if not math.isnan(c.losses[0])), default=math.nan)
    lower = plain.end - other.end
    return lower > WORTH * (start - other.end) and start > other.end and not lower < LESS * abs(plain.end)
