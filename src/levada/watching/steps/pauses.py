"""Steps that are counted and not heard, where steps are so short that hearing each one costs more than was allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, final

from levada.watching.loop.clocks import StepClock
from levada.watching.loop.losses import Losses, in_backward
from levada.watching.loop.overhead import Cadence
from levada.watching.loop.turns import Turn
from levada.watching.steps.asleep import Asleep
from levada.watching.steps.passes import Passes

__all__ = ["Pauses"]


class Counted(Protocol):
    """Whose steps are counted."""

    steps: int
    updates: int
    stepping: tuple[Callable[..., Any], Callable[..., Any]]  # the hooks before and behind an optimizer's step


@final
class Pauses:
    """Lets a watch hear nothing for some steps, and then again.

    Hooks stay where they are and return at once: compiled code has them in it, and they see a loop that makes no update
    any more. Of a step in a pause only its number is known. A pause ends early where passes come and no
    update does, or where a scaler skips one.

    Where optimizers take turns, a step ends where a pass of the next one begins: of passes it is heard that they come,
    and not whose they are. A pause ends with the pass behind its last step, so that the next step is heard as a whole,
    or where other optimizers stepped in one than in any step that was heard. If a pass was heard between the steps of
    two optimizers, and was none that ends a step, there are no more pauses: they would count it as one.

    Args:
        counted: counts the steps.
        cadence: says how long one lasts.
        clock: times it.
        passes: hear nothing in it.
        losses: neither.
        turn: who has stepped.
        arm: called once steps are heard again.

    Attributes:
        on: whether one is under way.
    """

    def __init__(
        self,
        counted: Counted,
        cadence: Cadence,
        clock: StepClock,
        passes: Passes,
        losses: Losses,
        turn: Turn,
        arm: Callable[[], None],
    ) -> None:
        self.on = False
        self._alone = turn.alone
        self._counted, self._cadence, self._clock = counted, cadence, clock
        self._passes, self._losses, self._turn, self._arm = passes, losses, turn, arm
        self._left = self._steps = 0  # of this one: steps that are to come, and that went by
        self._called = self._updates = 0  # of it: passes, and steps of optimizers
        self._asleep: Asleep | None = None
        # The step at which a loop left a pass without a backward pass, those that were not heard, and if by an error.
        self._stopped = -1, 0, False

    def begin(self) -> None:
        """Begin one, if it is time to."""
        self._cadence.round = self._turn.round
        self._left = self._cadence.pause(self._counted.steps)
        self._steps = self._called = self._updates = 0
        self.on = self._left > 0
        if self.on:
            self._passes.pause()
            self._losses.pause()
            self._losses.own.called = False

    def step(self) -> None:
        """End a step that was not heard; with the last one, the pause."""
        if not self._alone:
            self._turn.end()
        self._counted.steps += 1
        self._left -= 1
        self._steps += 1
        self._called += self._passes.idle
        self._passes.idle, self._losses.own.called = 0, False
        if self._left <= 0:
            self.end()

    def pass_by(self) -> bool:
        """Count the step of a watch's only optimizer, if there is a pause; return whether there is one."""
        if not (self.on and self._alone) or in_backward():
            return False
        self.step()
        return True

    def before(self, optimizer: Any, args: Sequence[Any], kwargs: Collection[str]) -> bool:
        """Hear that an optimizer is about to step; return whether nothing of it is heard.

        Args:
            optimizer: one of the watch's.
            args: of its step, it first; passes of a closure may end a pause.
            kwargs: likewise.
        """
        self._passes.moved.begins()
        if not self.on:
            return False
        if not self._alone:
            self.part(optimizer)
        return self.on and len(args) < 2 and not kwargs

    def part(self, optimizer: Any = None) -> None:
        """In a pause, end a step in which not all optimizers stepped, if the next one has begun.

        Args:
            optimizer: one that is about to step, if one is.
        """
        turn = self._turn
        if self.on and turn.begun and (self._passed or optimizer in turn):
            usual = turn.usual
            self.step()
            if not usual:
                self.end(within=True)

    def stepped(self, optimizer: Any, *, skipped: bool = False) -> bool:
        """Hear that an optimizer has stepped, and return whether the watch hears it too.

        Args:
            optimizer: one of the watch's.
            skipped: whether a scaler did not let it.
        """
        if self.on:
            self.part()  # passes of a closure are within the step
        elif self._turn.begun and self._passed:
            self._cadence.pauses = False
        self._called += self._passes.idle
        self._updates += 1
        self._passes.idle, self._losses.own.called = 0, False
        self._turn.add(optimizer, skipped=skipped)
        if self.on and self._left <= 1 and not self._turn.complete:
            self._passes.wake()
            self._losses.own.wakes = True
        return not self.on

    def stir(self) -> None:
        """Hear everything again where a pass begins: behind the last step of a pause, or in the midst of one."""
        last = self._losses.own.wakes
        self.part()
        self.end(within=not last)

    def leave(self, *, anew: bool = False) -> bool:
        """End it where a loop may have ended; return whether there was one, and no backward pass behind an update.

        Args:
            anew: whether the gradients of the step that is left are made anew.
        """
        paused, passed, called = self.on, self._passed, self._losses.own.called
        stopped = paused and self._passes.idle > 0 and not called
        self.part()
        if stopped:
            self._stopped = self._counted.steps, self._steps, isinstance(sys.exc_info()[1], Exception)
        self.end(within=passed and not anew)  # what a loop goes on with may add to those gradients
        return paused and (self._turn.begun or not called)

    @property
    def unheard(self) -> tuple[str, bool]:
        """Say that a loop left a pass of a pause before its backward pass, and whether by an error; "" if it did not.

        It holds until another step is made.
        """
        at, steps, failed = self._stopped
        if at != self._counted.steps:
            return "", False
        last = f"the last {steps:,} steps" if steps > 1 else "the last step" if steps else ""
        was = "were" if steps > 1 else "was"
        told = f"{last} {was} not heard, as steps are short, nor was" if steps else "as steps are short, nobody heard"
        return (
            f"{told} the pass behind {'them' if steps > 1 else 'it' if steps else 'the last step'}, which no backward "
            "pass followed: if its loss was why the loop ended, watch.leave(loss=loss) tells of it",
            failed,
        )

    def end(self, *, within: bool = False) -> None:
        """Hear everything again, if there is a pause.

        Args:
            within: whether passes of the step that is under way have gone by: its loss is not known.
        """
        if not self.on:
            return
        self._losses.own.wakes = False
        self._measure()
        self.on = False
        self._passes.resume()
        self._losses.resume(within=within)
        if self._steps:
            self._passes.updated(self._counted.steps - 1)
            self._clock.tick(False, self._steps)
            self._cadence.take(self._clock)
        self._arm()

    def _measure(self) -> None:
        """Tell what hooks took in this pause."""
        passes, own = self._passes, self._losses.own
        if self._asleep is None:
            self._asleep = Asleep(*passes.hooks, self._counted.stepping)
        if self._asleep.due and not self._turn.begun:
            kept = self._left, self._steps, self._called, self._updates
            counted, flags = (self._counted.steps, self._counted.updates), (passes.idle, own.called)
            passes.idle, self._left = -1, 1 << 40  # so that the pass does not end it
            try:
                self._asleep.measure()
            finally:  # Ctrl-C comes at any time, and a notebook goes on
                self._turn.drop()
                self._left, self._steps, self._called, self._updates = kept
                (self._counted.steps, self._counted.updates), (passes.idle, own.called) = counted, flags
        steps = self._steps if self._alone else self._updates
        self._cadence.sleep(self._asleep.seconds(passes=self._called, steps=steps))

    @property
    def _passed(self) -> bool:
        """Whether a pass came since an optimizer stepped."""
        return self._passes.idle > 0 or self._losses.own.called
