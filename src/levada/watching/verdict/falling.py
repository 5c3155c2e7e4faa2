"""A loss that falls without a bound, as one whose sign is reversed: what should be minimised is maximised."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, final

__all__ = ["Falling"]

# Times its size at first that a loss is negative, and losses before that is asked.
FOLD, LEAST = 30.0, 128
# Power of the number of steps with which the size grows: the logarithm of a density grows with the first at most, as
# where Adam narrows it by as much at each step.
POWER: Final = 1.25


@final
class Falling:
    """With what power of the number of steps the size of a negative loss grows.

    The loss is marked where the number of steps is a power of two, or at the first behind it that is heard. Its
    size grows without a bound, so far, if it is
    thirty times that of the first losses, and grew with a power of 1.25 or more over both of the last two marks
    that are at least a factor of two apart: as of outputs of several layers that all grow. The logarithm
    of a density whose width is learned falls by as much at each step at most, a reward or a contrastive loss comes down
    fast once, and then ever more slowly.

    Example:
        >>> falling = Falling()
        >>> for count in range(1, 1001):
        ...     falling.add(count, 2.3 - 0.01 * count ** 1.5)
        >>> round(falling.power, 1), round(falling.fold)
        (1.5, 137)
    """

    def __init__(self) -> None:
        self.first = 0.0
        self.marks: list[tuple[int, float]] = []
        self._count, self._now = 0, math.nan

    def add(self, count: int, loss: float) -> None:
        """Take the loss after so many steps.

        Args:
            count: of steps, from the first one whose loss was heard.
            loss: the median of the last few.
        """
        due, self._count, self._now = count.bit_length() > self._count.bit_length(), count, loss
        if count <= LEAST // 8:
            self.first = max(self.first, abs(loss))
        if due:
            self.marks = [*self.marks[-2:], (count, loss)]

    @property
    def fold(self) -> float:
        """Times the size of the first losses by which it is below zero; 0 if it is above."""
        return -self._now / self.first if self.first and self._now < 0 else 0.0

    @property
    def power(self) -> float:
        """The smaller power of the last two stretches; 0 where the loss was not negative at their ends."""
        ends = [*(mark for mark in self.marks if mark[0] <= self._count / 2), (self._count, self._now)][-3:]
        if len(ends) < 3 or not max(loss for _, loss in ends) < 0:
            return 0.0
        return min(math.log(after / before) / math.log(n / m) for (m, before), (n, after) in pairwise(ends))

    @property
    def unbounded(self) -> bool:
        """Whether it is negative, and its size grows without a bound so far."""
        return self._count >= LEAST and self.fold >= FOLD and self.power >= POWER
