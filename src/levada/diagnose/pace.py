"""What a check spends its time on, and whether what comes next still ends within its budget."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

__all__ = ["Pace"]

# A backward pass beside a forward one, until one was timed.
BACKWARD = 2.0
# Passes of which the quicker counts.
PASSES = 2


@final
class Pace:
    """Seconds from its making: spent by stage, needed by a pass, and left.

    Args:
        budget: seconds within which everything but the first measurement ends.

    Attributes:
        quickest: seconds of the quickest forward pass.
        seconds: stage -> seconds that were spent in it and in no stage inside of it.
        left_out: what was not done because it would not have ended in time.
        untested: rule -> what it lacks because of that.

    Example:
        >>> pace = Pace(60.0)
        >>> with pace.stage("record"):
        ...     pass
        >>> list(pace.seconds), pace.allows("a second draw", 1, 1), pace.left_out
        (['record'], True, [])
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.start = time.perf_counter()
        self.quickest = math.inf
        self._forwards, self._backwards = deque[float](maxlen=PASSES), deque[float](maxlen=PASSES)
        self.seconds: dict[str, float] = {}
        self.left_out: list[str] = []
        self.untested: dict[str, str] = {}
        self._inside, self._short = 0.0, False

    @property
    def deadline(self) -> float:
        """Time at which nothing new begins."""
        return self.start + self.budget

    @property
    def forward(self) -> float:
        """Seconds of a forward pass: the quicker one of the last two, as anything may stall one; 0 before."""
        return min(self._forwards, default=0.0)

    @property
    def backward(self) -> float | None:
        """Seconds of a backward pass, in the same way; None before one was timed."""
        return min(self._backwards, default=None)

    def needs(self, forwards: float, backwards: float) -> float:
        """Return the seconds that so many passes take, as the latest ones did."""
        backward = BACKWARD * self.forward if self.backward is None else self.backward
        return forwards * self.forward + backwards * backward

    def allows(
        self,
        what: str,
        forwards: float = 0.0,
        backwards: float = 0.0,
        *,
        reserve: tuple[float, float] = (0.0, 0.0),
        rules: Sequence[str] = (),
    ) -> bool:
        """Return whether so many passes end in time, with those that must be made after them; if not, keep what for.

        Args:
            what: they are for, in words; "" if the caller tells it.
            forwards: number of forward passes.
            backwards: number of backward passes.
            reserve: numbers of passes that are made afterwards in any case.
            rules: rules that are not known without them.
        """
        need = self.needs(forwards + reserve[0], backwards + reserve[1])
        if time.perf_counter() + need <= self.deadline:
            return True
        self.leave_out(what, rules)
        return False

    def leave_out(self, what: str, rules: Sequence[str] = ()) -> None:
        """Keep what was not done, or not to its end, for want of time."""
        self._short = True
        if what and what not in self.left_out:
            self.left_out.append(what)
        self.untested.update(dict.fromkeys(rules, f"a budget of {self.budget:g} s did not allow {what}"))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what passes inside as a stage's, but for stages inside of it."""
        outside, self._inside = self._inside, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + passed - self._inside
            self._inside = outside + passed

    @contextmanager
    def pass_forward(self) -> Iterator[None]:
        """Time a forward pass."""
        start = time.perf_counter()
        yield
        self._forwards.append(time.perf_counter() - start)
        self.quickest = min(self.quickest, self._forwards[-1])

    @contextmanager
    def pass_backward(self) -> Iterator[None]:
        """Time a backward pass."""
        start = time.perf_counter()
        yield
        self._backwards.append(time.perf_counter() - start)

    def told(self) -> list[str]:
        """Return notes on what was left out."""
        if not self._short:
            return []
        without = f" There was no time for {'; '.join(self.left_out)}." if self.left_out else ""
        return [f"The budget of {self.budget:g} s was spent before everything was measured.{without}"]
