"""Seconds: of the watch's own code in a step, and of whole steps."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, final

import torch

__all__ = ["Spent", "StepClock", "more_time"]


def more_time(seconds: float) -> str:
    """Return a time that is to come, in words, rounded up.

    Args:
        seconds: above 0.

    Example:
        >>> more_time(0.2), more_time(61.0), more_time(200.0), more_time(9000.0)
        ('1 more second', '70 more seconds', '4 more minutes', '3 more hours')
    """
    unit, size = next((u for u in (("second", 1), ("minute", 60)) if seconds <= 99 * u[1]), ("hour", 3600))
    count = math.ceil(seconds / size)
    count = count if count <= 20 else 10 * math.ceil(count / 10)  # it is no better known
    return f"{count:,} more {unit}{'s' if count > 1 else ''}"


@final
class Spent:
    """Seconds of a step in the watch's own code, where a step's end may come within what is being counted.

    Example:
        >>> spent = Spent()
        >>> spent.add(2.0)
        >>> spent.take()
        2.0
    """

    def __init__(self) -> None:
        self._seconds = self._apart = 0.0

    def add(self, seconds: float) -> None:
        """Count what just took so long, but for the ends of steps in it."""
        self._seconds += max(seconds - self._apart, 0.0)
        self._apart = 0.0

    def apart(self, end: Callable[[], None]) -> None:
        """End a step, which counts itself."""
        begun = time.perf_counter()
        end()
        self._apart += time.perf_counter() - begun

    def restart(self) -> None:
        """Hear that nothing is being counted."""
        self._apart = 0.0

    def take(self) -> float:
        """Return the seconds since this was called last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@final
class StepClock:
    """Seconds from one step's end to the next, on the device where there is one, without waiting for it.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self._last: Any = None
        self._open: deque[tuple[bool, int, Any, Any]] = deque()

    def tick(self, sampled: bool | None, steps: int = 1) -> None:
        """End a step, or several; None begins to count, and what was before does not."""
        if self._events:
            now: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        else:
            now = time.perf_counter()
        if sampled is not None and self._last is not None:
            self._open.append((sampled, steps, self._last, now))
        self._last = now

    def read(self) -> list[tuple[bool, int, float]]:
        """Return what is known since the last call: whether steps were sampled, their number, and their seconds."""
        known = []
        while self._open:
            sampled, steps, begin, end = self._open[0]
            if self._events and not end.query():
                break
            self._open.popleft()
            known.append((sampled, steps, begin.elapsed_time(end) / 1e3 if self._events else end - begin))
        return known
