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
    """The largest of the last three batches beside the median of the first eight, if it is half above each of these.

    One batch is enough, as none may come for long: where it was odd, the factor is 1 again three batches later.

    Example:
        >>> growth = Growth()
        >>> for value in (1.0, 1.1, 0.9, 1.0, 1.0, 1.2, 1.0, 0.8, 3.0, 4.0):
        ...     growth.add(value)
        >>> growth.factor
        4.0
        >>> for value in (1.0, 1.1, 1.7):
        ...     growth.add(value)
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
    def known(self) -> bool:
        """Whether it was measured on any batch."""
        return bool(self._first)

    @property
    def factor(self) -> float:
        """Times by which it has grown; 1 where it has not, or too few batches tell."""
        now = max(self._last, default=0.0)
        return now / median(self._first) if self._last and now >= LEAST * max(self._first) else 1.0
