r"""Whether losses are above those of when they were lowest, told by ranks.

A rate that is too high makes losses scatter as much as it raises them, so that their own scatter hides the rise. Ranks
know no scatter: of $n$ later losses and $n$ of the lowest stretch, $U / n^2$ is the share of pairs in which the later
one is higher. It is 1/2 by chance, with a standard deviation of $\sqrt{(2n + 1) / 12} / n$, whatever the losses'
distribution is.

Source: Mann and Whitney 1947, On a test of whether one of two random variables is stochastically larger than the other.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import final

from levada.watching.verdict.window import Window

__all__ = ["Lowest", "median_of"]


@final
class Lowest:
    """The losses in a row, of so many, whose median was the lowest, and the last ones beside them.

    Args:
        count: how many; of less than 25, all of which a later one is above, no rise is 6 deviations.

    Attributes:
        median: that of the lowest; infinite as long as there were too few.
        last: the last losses.

    Example:
        >>> lowest = Lowest(32)
        >>> for loss in (*[50] * 32, *range(10, 42), *[60] * 32):
        ...     _ = lowest.add(float(loss))
        >>> lowest.median, lowest.last.median, round(lowest.deviations, 2)
        (25.5, 60.0, 6.87)
    """

    def __init__(self, count: int) -> None:
        self.median = math.inf
        self.last = Window(count)
        self._ordered: list[float] = []

    def add(self, loss: float) -> bool:
        """Take the loss of one step; return whether the last ones are the lowest so far.

        Args:
            loss: finite.
        """
        last = self.last
        last.add(loss)
        if not last.full or (median := last.median) >= self.median:
            return False
        self.median, self._ordered = median, last.ordered.copy()
        return True

    @property
    def deviations(self) -> float:
        """By how many standard deviations the last losses rank above the lowest ones; 0 as long as there are none."""
        known, n = self._ordered, len(self._ordered)
        if not known:
            return 0.0
        share = sum(bisect_left(known, loss) + bisect_right(known, loss) for loss in self.last) / (2 * n * n)
        return (share - 0.5) * n * math.sqrt(12 / (2 * n + 1))


def median_of(values: Sequence[float]) -> float:
    """Return the median; NaN of none.

    Args:
        values: in any order.

    Example:
        >>> median_of([3.0, 1.0, 2.0]), median_of([4.0, 1.0])
        (2.0, 2.5)
    """
    if not values:
        return math.nan
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
