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

__all__ = ["Lowest", "median_of"]


@final
class Lowest:
    """The losses in a row, of so many, whose median was the lowest.

    Args:
        count: how many; of less than 25, all of which a later one is above, no rise is 6 deviations.

    Attributes:
        median: theirs; infinite as long as there were too few.

    Example:
        >>> lowest = Lowest(32)
        >>> for first in (50, 10, 30):
        ...     _ = lowest.add([float(first + i) for i in range(32)])
        >>> lowest.median, lowest.deviations([25.5] * 32), round(lowest.deviations([60.0] * 32), 2)
        (25.5, 0.0, 6.87)
    """

    def __init__(self, count: int) -> None:
        self.median = math.inf
        self._count = count
        self._sorted: list[float] = []

    def add(self, losses: Sequence[float]) -> bool:
        """Take the last losses in a row; return whether they are the lowest so far.

        Args:
            losses: finite; fewer than `count` count for nothing.
        """
        if len(losses) < self._count or not losses:
            return False
        median = median_of(losses)
        lower = median < self.median
        if lower:
            self.median, self._sorted = median, sorted(losses)
        return lower

    def deviations(self, losses: Sequence[float]) -> float:
        """Return by how many standard deviations losses rank above the lowest ones; 0 as long as there are none.

        Args:
            losses: as many.
        """
        known, n = self._sorted, len(self._sorted)
        if not known or len(losses) < n:
            return 0.0
        share = sum(bisect_left(known, loss) + bisect_right(known, loss) for loss in losses) / (2 * n * len(losses))
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
