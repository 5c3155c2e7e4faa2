"""A longer training by steps that are large beside the weights, and by a tenth of them, on all batches in turn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from levada.diagnose.loss import Loss
from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import Course, rehearse
from levada.diagnose.update import Factory

__all__ = ["LENGTH", "LESS", "STANDS", "plateaus"]

# Where a rate lets a loss fall at once and then no further is seen after some tens of steps, and not after ten.
LENGTH = 40
# The shorter steps, as a share; and the share of their gain below which the longer ones stand still.
SHORTER, LESS = 0.1, 0.75
# The same of the second half of the steps.
STANDS = 0.25
# A loss that has come down to this share of where it fell from stands on no plateau.
FALLEN = 0.5
WHAT = f"{LENGTH} steps at the rate that was chosen, and at a tenth of it"


def plateaus(run: Run, loss: Loss, factory: Factory, start: float) -> dict[str, Course]:
    """Train twice from the same weights, at the rate that was chosen and at a tenth of it.

    If the loss ends lower at the lower rate, both are done once more in another order of the batches and from other
    random numbers.

    Args:
        run: the model, which comes back as it was.
        loss: of outputs and a batch.
        factory: builds the optimizer.
        start: loss from which it falls: that of outputs of zero, or of the model if it is lower.

    Returns:
        "long" and "long_lower", "second_long" and "second_long_lower"; without those that were not needed, because the
        loss fell far, or for which there was no time.

    Cost:
        At most 4 times 40 training steps.
    """
    found: dict[str, Course] = {}
    for order, prefix in enumerate(("", "second_")):
        for name, scale in (("long", 1.0), ("long_lower", SHORTER)):
            if not run.pace.allows(WHAT, LENGTH + 1, LENGTH + 1):
                return found
            course = _course(run, loss, factory, (order, scale, start))
            if course is None:
                return found
            found[prefix + name] = course
        if found[prefix + "long"].end <= found[prefix + "long_lower"].end:
            return found
    return found


def _course(run: Run, loss: Loss, factory: Factory, asked: tuple[int, float, float]) -> Course | None:
    order, scale, start = asked
    batches = len(run.batches)
    turns = itertools.cycle((*range(order % batches, batches), *range(order % batches)))

    def objective() -> Tensor:
        index = next(turns)
        return loss(run(index, draw=order), run.batches[index])

    def fallen(losses: Sequence[float]) -> bool:
        last = losses[-batches:]
        return len(losses) > batches and math.fsum(last) < FALLEN * start * len(last)

    until = fallen if scale == 1.0 else None
    course = rehearse(run.model, objective, factory, run.pace.deadline, scale, until=until, steps=LENGTH)
    return replace(course, batches=batches) if course is not None and course.complete else None
