"""Losses in bins."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

from levada.report.words import number
from levada.web.opened import opened
from levada.web.pictures import Bins, Loss, LossOf, OptimizerLoss
from levada.web.shapes import plain

__all__ = ["bins_of", "loss_of"]


def loss_of(path: Path, asked: LossOf) -> Loss:
    """Give a run's losses.

    Args:
        path: its folder.
        asked: which.
    """
    run = opened(path)
    each = run.losses_by_optimizer()
    return Loss(
        training=bins_of(run.losses(), asked),
        held_out=bins_of(run.held_out(), asked),
        by_optimizer=[OptimizerLoss(name=plain(name), bins=bins_of(losses, asked)) for name, losses in each.items()],
    )


def bins_of(losses: Sequence[tuple[int, float]], asked: LossOf) -> Bins:
    """Put losses into bins of neighbours.

    Args:
        losses: steps and losses, in the order of the steps.
        asked: which of them.

    Example:
        >>> bins_of([(0, 4.0), (1, 2.0), (2, float("nan"))], LossOf(bins=2)).model_dump(include={"first", "mean"})
        {'first': [0, 2], 'mean': [3.0, None]}
    """
    begin = bisect_left(losses, asked.start, key=lambda one: one[0])
    stop = bisect_right(losses, asked.stop, key=lambda one: one[0])
    size = max(1, math.ceil((stop - begin) / asked.bins))
    found = Bins(first=[], last=[], low=[], mean=[], high=[], count=[], nonfinite=[])
    for start in range(begin, stop, size):
        part = losses[start : min(start + size, stop)]
        values = [value for _, loss in part if (value := number(loss)) is not None and math.isfinite(value)]
        found.first.append(part[0][0])
        found.last.append(part[-1][0])
        found.low.append(min(values, default=None))
        found.mean.append(math.fsum(one / len(values) for one in values) if values else None)
        found.high.append(max(values, default=None))
        found.count.append(len(part))
        found.nonfinite.append(len(part) - len(values))
    return found
