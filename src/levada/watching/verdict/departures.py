"""What left its baseline shortly before a loss jumped."""

from __future__ import annotations

from collections import deque
from typing import Final, final

import torch
from torch import Tensor

from levada.watching.verdict.baseline import Baseline

__all__ = ["Departures"]

# A signal has left its baseline at so many standard deviations and octaves.
FAR, OCTAVES = 8.0, 1.0
# What moved longer before than this many samples did not bring the spike about.
HORIZON: Final = 5
# Steps since the last sample, and more than the samples span, after which anything may have happened.
LATELY: Final = 64


@final
class Departures:
    """Since which sampled step each signal of each block has been outside its baseline.

    Args:
        columns: number of signals, all blocks together.
    """

    def __init__(self, columns: int) -> None:
        self.since = torch.full((columns,), -1, dtype=torch.long)
        self.size = torch.zeros(columns)
        self.steps: deque[int] = deque(maxlen=HORIZON)

    def see(self, step: int, values: Tensor, baseline: Baseline) -> None:
        """Take a sampled step, before the baseline does.

        Args:
            step: its number.
            values: of every column.
            baseline: of every column.
        """
        rise = baseline.rise(values)
        outside = ((rise / baseline.spread).abs() >= FAR) & (rise.abs() >= OCTAVES)
        self.size = torch.where(outside & (self.since < 0), rise, self.size)
        self.since = torch.where(outside, torch.where(self.since < 0, step, self.since), -1)
        self.steps.append(step)

    def lately(self, step: int) -> list[int]:
        """Return the sampled steps shortly before a step; none where the last is so old that it tells nothing of it.

        Args:
            step: when the loss jumped.
        """
        before = [s for s in self.steps if s < step]
        return before if before and step - before[-1] <= max(LATELY, before[-1] - before[0]) else []

    def first_before(self, step: int) -> list[tuple[int, int, float]]:
        """Return the columns that left shortly before a step, with the sampled step and octaves; the earliest first.

        Args:
            step: when the loss jumped.
        """
        before = self.lately(step)
        if not before:
            return []
        columns = ((self.since >= before[0]) & (self.since < step)).nonzero().flatten().tolist()
        left = [(int(self.since[c]), c, float(self.size[c])) for c in columns]
        return [(c, s, size) for s, c, size in sorted(left, key=lambda one: (one[0], -abs(one[2])))]
