"""How far a run of several studies is, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from levada.study.execution import Execution
from levada.study.sweep import num_cores

__all__ = ["Clock", "Standing"]

_PRIOR: Final = 60.0  # processor seconds after which what was measured of the pace outweighs what was assumed


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run of studies is.

    Attributes:
        studies_done: studies of which no cell is left.
        studies: all of them.
        results_done: results that are there, or failed.
        results: results that are wanted.
        seconds_left: an estimate of the time that the rest takes; None where nothing is known yet.
    """

    studies_done: int
    studies: int
    results_done: int
    results: int
    seconds_left: float | None


@final
class Clock:
    """Estimates the time left from the processor seconds left, and from how many of them pass in a second.

    Args:
        executions: the studies.
    """

    def __init__(self, executions: Sequence[Execution]) -> None:
        self._executions = executions
        self._began = time.monotonic()
        self._spent = 0.0

    def add(self, seconds: float) -> None:
        """Note processor seconds that a cell took.

        Args:
            seconds: of all its seeds.
        """
        self._spent += seconds

    def standing(self) -> Standing:
        """Return how far the studies are."""
        parts = self._executions
        left = [part.seconds_left() for part in parts]
        known = [seconds for seconds in left if seconds is not None]
        ahead = sum(known) if len(known) == len(left) else None
        # At first it is assumed that every core is ours; how it is shows as cells end.
        passed = time.monotonic() - self._began
        pace = (passed + _PRIOR / num_cores()) / (self._spent + _PRIOR)
        return Standing(
            sum(part.finished for part in parts),
            len(parts),
            sum(part.num_there for part in parts),
            sum(len(part.wanted) for part in parts),
            None if ahead is None else ahead * pace,
        )
