"""Which optimizers have stepped in the step that is under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

from levada.watching.loop.losses import HELD, in_backward
from levada.watching.loop.uncleared import MOST

__all__ = ["KEPT", "Turn"]

_KINDS: Final = 64  # sets of optimizers that are known to step together
KEPT: Final = 2 * HELD  # steps whose turn is known: as many as losses wait for a sample, and are on their way
_ROUND: Final = 32  # turns: an optimizer that rests longer has none in the rounds of the others


@final
class Turn:
    """The optimizers of a watch that have stepped in the present step, or whose step a scaler has skipped.

    Args:
        optimizers: the watch's.

    Attributes:
        skips: steps in a row, up to the last that ended, of which a scaler skipped all that were made.
        round: steps in which each optimizer has one, those aside that rest for more than 32 steps; of more than 16, 1.

    Example:
        >>> first, second = object(), object()
        >>> turn = Turn([first, second])
        >>> turn.add(first)
        >>> turn.begun, turn.complete, first in turn
        (True, False, True)
        >>> turn.add(second, skipped=True)
        >>> turn.complete
        True
        >>> for optimizer in (first, first, second) * 2:
        ...     turn.end()
        ...     turn.add(optimizer)
        >>> turn.round, turn.usual
        (3, True)
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.skips, self.round = 0, 1
        self._order = [id(optimizer) for optimizer in optimizers]
        self._waited, self._of, self._ended = set(self._order), dict[int, int](), -1
        self._stepped, self._skipped = set[int](), set[int]()
        self._kinds = set[frozenset[int]]()
        self._turns = 0
        self._last, self._rests = (
            dict[int, int](),
            dict[int, int](),
        )  # turns: an optimizer's last, and since the one before

    @property
    def alone(self) -> bool:
        """Whether there is one optimizer, or none."""
        return len(self._waited) < 2

    @property
    def begun(self) -> bool:
        """Whether one has stepped."""
        return bool(self._stepped)

    @property
    def complete(self) -> bool:
        """Whether all have, and no backward pass is running, which has more to tell first."""
        return self._waited <= self._stepped and not in_backward()

    @property
    def usual(self) -> bool:
        """Whether those that have stepped made a step together before; of more than 16 it is not known."""
        return frozenset(self._stepped) in self._kinds

    def __contains__(self, optimizer: Any) -> bool:
        return id(optimizer) in self._stepped

    def awaits(self, optimizer: Any) -> bool:
        """Return whether it is one of the watch's, and has not stepped yet.

        Args:
            optimizer: any.
        """
        return id(optimizer) in self._waited - self._stepped

    def add(self, optimizer: Any, *, skipped: bool = False) -> None:
        """Hear that one has stepped.

        Args:
            optimizer: one of the watch's.
            skipped: whether a scaler did not let it.
        """
        self._stepped.add(id(optimizer))
        if skipped:
            self._skipped.add(id(optimizer))

    def end(self, step: int | None = None) -> None:
        """End a step.

        Args:
            step: its number, for `of`; None where its loss is not heard.
        """
        self._ended = self._ended if step is None else step
        if step is not None and not self.alone and not self._waited <= self._stepped:
            self._of[step] = sum(1 << i for i, key in enumerate(self._order) if key in self._stepped)
            if len(self._of) > KEPT:
                del self._of[next(iter(self._of))]
        self.skips = self.skips + 1 if self._skipped and self._skipped >= self._stepped else 0
        if 1 < len(self._waited) <= MOST:
            self._count()
        self.drop()

    def _count(self) -> None:
        if len(self._kinds) < _KINDS:
            self._kinds.add(frozenset(self._stepped))
        self._turns += 1
        for key in self._stepped:
            self._rests[key] = self._turns - self._last.get(key, -_ROUND)
            self._last[key] = self._turns
        since = self._turns - _ROUND
        self.round = max((n for key, n in self._rests.items() if n <= _ROUND and self._last[key] > since), default=1)

    def of(self, step: int) -> int | None:
        """Return which optimizers made a step: the sum of 1, 2, 4, ... of them; 0 if all did, None of one not made yet.

        Args:
            step: whose loss waits, or has come with the last sample.
        """
        return self._of.get(step, 0) if step <= self._ended else None

    def drop(self) -> None:
        """Forget who has stepped."""
        self._stepped.clear()
        self._skipped.clear()
