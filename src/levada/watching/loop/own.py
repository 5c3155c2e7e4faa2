"""Which backward passes are those of a watch: the ones that a thread calls which runs its model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import final

__all__ = ["OwnPasses", "running"]


@final
class OwnPasses:
    """The backward passes that one watch hears of: those of threads that ran its model since, or at, its last update.

    Who calls `backward` counts. Gradients arrive in a thread for each device, and a checkpoint begins passes of its own
    there. Another loop in another thread calls `backward` at any time: while this one's gradients are looked at too.

    Attributes:
        retains: whether the pass that is running keeps its graph, so that another may follow.
        paused: whether none is heard of for now.
        called: whether one began since this was set to False, heard or not.
        wakes: whether the next one ends a pause.
        awake: is called then.

    Example:
        >>> own = OwnPasses()
        >>> own.open()
        >>> own.called_here(), own.counted
        (True, False)
        >>> with running([own], retains=False):
        ...     own.counted
        True
    """

    def __init__(self) -> None:
        self.retains = self.paused = self.called = self.wakes = False
        self.awake: Callable[[], None] = lambda: None
        self._open = False
        self._depth = 0
        self._last = self._update = 0  # idents of threads; no thread has 0
        self._forward: set[int] = set()  # since the last update

    def open(self) -> None:
        """Hear of the passes that this thread calls, until another runs the model."""
        self._open = True
        self._last, self._update = threading.get_ident(), 0
        self._forward = {self._last}

    def close(self) -> None:
        """Hear of none."""
        self._open = False

    def follow(self) -> None:
        """Learn that this thread runs the model forward."""
        if self._last != threading.get_ident():  # another one evaluates the model, or goes on with the training
            self._last = threading.get_ident()
            self._forward = {*self._forward, self._last}

    def updated(self) -> None:
        """Learn that this thread updates the model, as one may that runs what is hidden in compiled code."""
        self._update = threading.get_ident()
        if len(self._forward) != 1 or self._last not in self._forward:
            self._forward = {self._last}

    def called_here(self) -> bool:
        """Return whether a pass that this thread calls is one of them."""
        here = threading.get_ident()
        if here != self._update and here not in self._forward:
            return False
        self.called = True
        if self.wakes:
            self.awake()
        return not self.paused

    @property
    def counted(self) -> bool:
        """Whether gradients that arrive now are those of a loss, as those of `torch.autograd.grad` are not."""
        return not self._open or self._depth > 0

    def _move(self, by: int, *, retains: bool) -> None:
        self._depth, self.retains = self._depth + by, retains


@final
class running:  # noqa: N801  # it stands behind `with`, and a generator takes twice as long
    """Let watches know that a backward pass of theirs is running.

    Args:
        heard: of the watches.
        retains: whether it keeps its graph.
    """

    __slots__ = ("_heard", "_retains")

    def __init__(self, heard: Sequence[OwnPasses], *, retains: bool) -> None:
        self._heard, self._retains = heard, retains

    def __enter__(self) -> None:
        for own in self._heard:
            own._move(1, retains=self._retains)

    def __exit__(self, *_: object) -> None:
        for own in self._heard:
            own._move(-1, retains=False)
