"""How many times as large as at first a number of each batch has become, as of targets that are scaled up."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final, final

__all__ = ["Growth"]

# Batches that say what it was at first, and what it is now.
FIRST, LAST = 8, 3
# Times the largest of the first below which it has not grown: those of small batches scatter.
LEAST: Final = 1.5


@final
class Growth:
    """The median of the last three batches beside that of the first eight, if each is half above the largest of these.

    Example:
        >>> growth = Growth()
        >>> for value in (1.0, 1.1, 0.9, 1.0, 1.0, 1.2, 1.0, 0.8, 3.0, 5.0, 4.0):
        ...     growth.add(value)
        >>> growth.factor
        4.0
        >>> growth.add(1.7)
        >>> growth.factor
        1.0
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=LAST)

    def add(self, value: float) -> None:
        """Take the number of a batch.

        Args:
            value: it; what is not a finite number above 0 was not measured.
        """
        if not (math.isfinite(value) and value > 0):
            return
        if len(self._first) < FIRST:
            self._first.append(value)
        else:
            self._last.append(value)

    @property
    def factor(self) -> float:
        """Times by which it has grown; 1 where it has not, or too few batches tell."""
        if len(self._last) < LAST or min(self._last) < LEAST * max(self._first):
            return 1.0
        return median(self._last) / median(self._first)
