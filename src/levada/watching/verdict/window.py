"""The last so many numbers of a series, by size too: their median costs nothing to ask for after each."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from typing import final

from levada._errors import require_at_least

__all__ = ["Window"]


@final
class Window:
    """The last numbers of a series, in the order in which they came and by size.

    Args:
        count: how many, at least 1.

    Attributes:
        count: how many at most.
        ordered: those numbers, from the smallest to the largest; of equal ones the earlier first. Not to be changed.

    Raises:
        UsageError: if `count` is less.

    Cost: a search among `count` numbers for each that comes, where a sort would compare all of them.

    Example:
        >>> window = Window(3)
        >>> for value in (5.0, 1.0, 4.0, 2.0):
        ...     window.add(value)
        >>> list(window), window.ordered, window.median
        ([1.0, 4.0, 2.0], [1.0, 2.0, 4.0], 2.0)
    """

    __slots__ = ("_last", "count", "ordered")

    def __init__(self, count: int) -> None:
        require_at_least("Window", "count", count, 1)
        self.count = count
        self._last: deque[float] = deque(maxlen=count)
        self.ordered: list[float] = []

    def __len__(self) -> int:
        return len(self.ordered)

    def __iter__(self) -> Iterator[float]:
        return iter(self._last)

    @property
    def full(self) -> bool:
        """Whether as many came as are kept."""
        return len(self.ordered) == self.count

    @property
    def median(self) -> float:
        """The median; NaN of none."""
        ordered, count = self.ordered, len(self.ordered)
        half = count // 2
        if count % 2:
            return ordered[half]
        return (ordered[half - 1] + ordered[half]) / 2 if count else math.nan

    def add(self, value: float) -> None:
        """Take one number; the earliest one goes where there are too many.

        Args:
            value: any but NaN, which has no place among others.
        """
        last, ordered = self._last, self.ordered
        if len(ordered) == self.count:
            del ordered[bisect_left(ordered, last[0])]
        last.append(value)
        insort(ordered, value)
