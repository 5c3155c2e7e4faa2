"""How the sampling of a watched run is told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from levada.runs.standing import Standing

__all__ = ["nearer", "sampling"]

_LATEST: Final = 8  # distances between samples that are told
_LATE: Final = 2  # times the largest of them: what the last sample may be behind before that is told


def nearer(taken: int, standing: Standing, every: int) -> str:
    """Say at which distance a training that is over would have had the samples that it lacks; "" if at none.

    Args:
        taken: samples that it has.
        standing: what it may be called.
        every: smallest distance between samples, as it was.

    Example:
        >>> short = Standing(steps=120, lacking={"samples": 5})
        >>> nearer(6, short, 20), nearer(6, short, 1), nearer(6, Standing(steps=120), 20)
        ('with every=10 these 120 steps have 11 samples', '', '')
    """
    lacking, steps = standing.lacking.get("samples", 0), standing.steps - standing.first
    needed = taken + lacking
    least = steps // (needed + 1)  # distances are now and then a step longer
    return f"with every={least} these {steps:,} steps have {needed:,} samples" if lacking and 0 < least < every else ""


def sampling(sampled: Sequence[int], steps: int) -> str:
    """Say how far apart the last samples are, by the steps that were sampled; and if none came for long since.

    Args:
        sampled: steps that were sampled, the latest of them at least.
        steps: steps that were made.

    Example:
        >>> sampling([0, 20, 40], 50), sampling(range(9), 9)
        ('sampled every 20 steps', 'sampled every step')
        >>> sampling([0, 20, 63], 5000)
        'sampled every 20 to 43 steps; the last sample is 4,936 steps old'
        >>> sampling([], 7), sampling([0], 7)
        ('no step was sampled', 'sampled once, at step 0')
    """
    if len(sampled) < 2:
        return f"sampled once, at step {sampled[0]:,}" if sampled else "no step was sampled"
    distances = [after - before for before, after in pairwise(sampled[-_LATEST - 1 :])]
    low, high = min(distances), max(distances)
    text = "every step" if high == 1 else f"every {high:,} steps" if low == high else f"every {low:,} to {high:,} steps"
    behind = steps - 1 - sampled[-1]
    return f"sampled {text}" + (f"; the last sample is {behind:,} steps old" if behind > _LATE * high else "")
