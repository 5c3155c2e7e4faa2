"""Which optimizers have stepped in the step that is under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from levada.watching.losses import in_backward

__all__ = ["Turn"]


@final
class Turn:
    """The optimizers of a watch that have stepped in the present step, or whose step a scaler has skipped.

    Args:
        optimizers: the watch's.

    Attributes:
        skips: steps in a row, up to the last that ended, of which a scaler skipped all that were made.

    Example:
        >>> first, second = object(), object()
        >>> turn = Turn([first, second])
        >>> turn.add(first)
        >>> turn.begun, turn.complete, first in turn
        (True, False, True)
        >>> turn.add(second, skipped=True)
        >>> turn.complete
        True
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.skips = 0
        self._waited = {id(optimizer) for optimizer in optimizers}
        self._stepped, self._skipped = set[int](), set[int]()

    @property
    def begun(self) -> bool:
        """Whether one has stepped."""
        return bool(self._stepped)

    @property
    def complete(self) -> bool:
        """Whether all have, and no backward pass is running, which has more to tell first."""
        return self._waited <= self._stepped and not in_backward()

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

    def end(self) -> None:
        """End the step."""
        self.skips = self.skips + 1 if self._skipped and self._skipped >= self._stepped else 0
        self.drop()

    def drop(self) -> None:
        """Forget who has stepped."""
        self._stepped.clear()
        self._skipped.clear()
