"""Steps that are counted and not heard, where steps are so short that hearing each one costs more than was allowed."""

from __future__ import annotations

from typing import final

from levada.watching.clocks import StepClock
from levada.watching.losses import Losses
from levada.watching.overhead import Cadence
from levada.watching.passes import Passes

__all__ = ["Pauses"]


@final
class Pauses:
    """Lets a watch hear nothing for some steps, and then again.

    Hooks stay where they are and return at once: compiled code has them in it, and they see a loop that makes no update
    any more. Of a step in a pause only its number is known. A pause ends early where passes come and no
    update does, or where a scaler skips one.

    Args:
        cadence: says how long one lasts.
        clock: times it.
        passes: hear nothing in it.
        losses: neither.

    Attributes:
        on: whether one is under way.
    """

    def __init__(self, cadence: Cadence, clock: StepClock, passes: Passes, losses: Losses) -> None:
        self.on = False
        self._cadence, self._clock = cadence, clock
        self._passes, self._losses = passes, losses
        self._left = self._steps = 0  # of this one: steps that are to come, and that went by

    def begin(self, step: int) -> None:
        """Begin one, if it is time to.

        Args:
            step: the first that is not heard.
        """
        self._left, self._steps = self._cadence.pause(step), 0
        self.on = self._left > 0
        if self.on:
            self._passes.pause()
            self._losses.pause()

    def pass_by(self) -> bool:
        """Hear that a step has ended in a pause, and return whether that was the last one of it."""
        self._left -= 1
        self._steps += 1
        self._passes.idle = 0
        return self._left <= 0

    def end(self, step: int, *, within: bool = False) -> None:
        """Hear everything again.

        Args:
            step: the first that is heard.
            within: whether passes of it have gone by.
        """
        self.on = False
        self._passes.resume()
        self._losses.resume(within=within)
        if self._steps:
            self._passes.skips.updated(step - 1)
            self._clock.tick(False, self._steps)
            self._cadence.take(self._clock)
