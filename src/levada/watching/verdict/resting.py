"""Optimizers that stepped and step no more, for longer than they ever rested before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

__all__ = ["Resting"]

# Steps without one of its own that no optimizer is asked about, and how many times its longest rest so far.
LEAST, TIMES = 64, 8


@final
class Resting:
    """Follows the steps of several optimizers, and which of them made none for longer than their habit explains.

    Optimizers that take turns rest as long as their turns are. One that is no longer called, as behind a gate that
    does not open again, rests for good; so does one that was to train for a while. What it holds tells no more. The
    updates before the first step of an optimizer are a rest too, as it may be slow; one that never stepped does not
    rest.

    Attributes:
        since: number of the optimizer -> the step of its last step, of those that rest for longer than is usual.

    Example:
        >>> resting, times = Resting(), {"a": 0, "b": 0}
        >>> for step in range(200):
        ...     resting.before_update(step, ["a", "b"], times.get)
        ...     times["a"] += 1
        ...     times["b"] += step < 100 and step % 3 == 0
        >>> resting.since
        {1: 99}
    """

    def __init__(self) -> None:
        self.since: dict[int, int] = {}
        self._times: list[int] = []
        self._last: list[int] = []
        self._longest: list[int] = []

    def before_update(self, step: int, optimizers: Sequence[Any], times: Callable[[Any], int]) -> None:
        """Hear of an update that begins.

        Args:
            step: its number.
            optimizers: all of them, always in the same order.
            times: says how many steps one has made before it.
        """
        if len(optimizers) < 2:
            return
        if not self._times:
            self._times, self._last, self._longest = ([n] * len(optimizers) for n in (0, step, 0))
        for i, each in enumerate(optimizers):
            made = times(each)
            if made > self._times[i]:
                self._longest[i] = max(self._longest[i], step - 1 - self._last[i])
                self._times[i], self._last[i] = made, step - 1
        self.since = {
            i: last
            for i, last in enumerate(self._last)
            if self._times[i] and step - last > max(LEAST, TIMES * self._longest[i])
        }
