"""What the loop logs between samples, on its way to the log of a recorded run: a process may be killed before one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, final

from levada.runs.losses import LOGGED
from levada.watching.measure.sample import Sample

__all__ = ["KeptScalars"]

SECONDS: Final = 0.25  # after which numbers are written, as losses are
EACH: Final = SECONDS / 16  # for each number: a loop that logs many in every step does not fill the disk


@final
class KeptScalars:
    """Hears of what is logged, and writes it if no sample has brought it in a quarter of a second.

    The event says from which step on a sample brings the same (`next`): readers then leave it out.

    Args:
        add: takes an event, as `Events.add`.
    """

    def __init__(self, add: Callable[..., None]) -> None:
        self._add = add
        self._held: dict[int, dict[str, float]] = {}  # by the step whose sample brings them
        self._at = -SECONDS

    def hear(self, step: int, scalars: Mapping[str, float]) -> None:
        """Remember numbers, and write what is held if it is time.

        Args:
            step: which is under way.
            scalars: name -> number.
        """
        for held in self._held.values():
            for name in scalars:
                held.pop(name, None)
        self._held.setdefault(step, {}).update(scalars)
        self.look()

    def look(self) -> None:
        """Write what is held, if it is time."""
        if self._held and time.monotonic() >= self._at:
            self.write()

    def sampled(self, sample: Sample) -> None:
        """Let go of what a sample has brought."""
        self._held = {step: held for step, held in self._held.items() if step > sample.step}

    def write(self) -> None:
        """Write what is held."""
        count = 0
        for step, held in self._held.items():
            if held:
                self._add(LOGGED, step=max(step - 1, 0), next=step, values=held)
                count += len(held)
        self._held = {}
        self._at = time.monotonic() + max(SECONDS, EACH * count)

    def forget(self) -> None:
        """Let go of all: it was told otherwise."""
        self._held = {}
