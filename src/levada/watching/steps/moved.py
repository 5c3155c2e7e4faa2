"""Weights that move while no optimizer of the watch steps: another one trains the model, unseen."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Final, final

from torch import Tensor, nn

from levada.watching.loop.places import listed, original
from levada.watching.loop.telling import warn
from levada.watching.steps.unoptimised import some_of

__all__ = ["Moved"]

# Backward passes behind an update, and so many times the most that one took, of which some move the weights.
LEAST, TIMES, MOVES = 32, 8, 16
_WITHIN: Final = 4096  # passes that one step may call, as that of LBFGS
_MOST: Final = 8  # parameters that are looked at
_REMEDY: Final = (
    "Give all optimizers that train it, as in levada.watch(model, [one, other]); without one, call Watch.step(). For "
    "one that was made anew close this watch, and make another: run=Continue(folder, step) goes on with its record."
)


@final
class Moved:
    """Finds that something trains the model which the watch was not given.

    A loop that makes its optimizer anew, or one more, goes on without the watch: a step is one of the optimizers that
    it was given. Seen are then backward passes behind which the weights have changed, and no step. Nothing is looked at
    before the 32nd, and the eighth time the most that an update took.

    Args:
        model: what is watched.

    Attributes:
        why: the reason, while it holds; else "".
        tell: called when it begins to hold, and when a step is made again.

    Example:
        >>> import warnings
        >>> model = nn.Linear(1, 1)
        >>> moved = Moved(model)
        >>> with warnings.catch_warnings(record=True) as told:
        ...     for i in range(48):
        ...         _ = nn.init.constant_(model.weight, i)
        ...         moved.learned()
        >>> moved.why
        'no step was heard so far, while the weights changed behind 16 backward passes: ...'
    """

    def __init__(self, model: nn.Module) -> None:
        self.why = ""
        self.tell: Callable[[], None] = lambda: None
        self._model = weakref.ref(model)
        self._step: int | None = None  # of the last update
        self._passes = self._moves = 0  # backward passes since then, and those behind which the weights had moved
        self._most = 1  # passes that an update took, at most
        self._last: list[tuple[int, list[float] | int]] = []

    def begins(self) -> None:
        """Hear that an optimizer is about to step, and may call passes."""
        self._count()
        self._passes, self._moves, self._last = -_WITHIN, 0, []

    def updated(self, step: int) -> None:
        """Hear that one has stepped.

        Args:
            step: its number.
        """
        self._count()
        self._step, self._passes, self._moves, self._last = step, 0, 0, []
        if self.why:
            self.why = ""
            self.tell()

    def learned(self) -> None:
        """Hear of a backward pass of the model."""
        self._passes += 1
        if self.why or self._passes < LEAST + TIMES * (self._most - 1):
            return
        now, before = self._now(), self._last
        self._last = now
        self._moves += bool(before) and before != now
        if self._moves >= MOVES:
            since = "so far" if self._step is None else f"since step {self._step}"
            self.why = (
                f"no step was heard {since}, while the weights changed behind {MOVES} backward "
                "passes: something trains the model that the watch was not given"
            )
            self.tell()
            warn(f"watch: {self.why}. {_REMEDY}", stacklevel=3)

    def _count(self) -> None:
        if not self.why:
            self._most = max(self._most, self._passes)

    def _now(self) -> list[tuple[int, list[float] | int]]:
        model = self._model()
        those = [] if model is None else [p for p in listed(original(model)) if p.requires_grad]
        those = those[:: max(1, len(those) // _MOST)][:_MOST]
        return [(id(p), _state(p)) for p in those]


def _state(p: Tensor) -> list[float] | int:
    """Return some numbers of a parameter, as it may be written as it was; where they would be waited for, its version.

    What is written by way of `p.data` is not counted as a version.
    """
    return some_of(p.detach()).nan_to_num().tolist() if p.device.type == "cpu" else p._version
