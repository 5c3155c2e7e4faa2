"""Gradients that are never cleared: each step adds its own to those of all steps before."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from torch import Tensor, nn

__all__ = ["LEAST", "Uncleared", "state_of"]

LEAST: Final = 8
"""Steps, before their gradients are looked at, and from which on they are told of."""

LATEST: Final = 64
"""Steps among which those are counted: a loop that clears now and then has runs that end before a sample sees them."""


def state_of(gradient: Tensor | None) -> tuple[int, int]:
    """Return what tells a gradient from what it was: another tensor, or written to.

    Args:
        gradient: of a parameter.
    """
    return (0, 0) if gradient is None else (id(gradient), gradient._version)


@final
class Uncleared:
    """Counts the steps, of the last 64, whose backward passes added to gradients that an update had used already.

    Between the end of a step and the first backward pass after it, a loop that clears gradients takes them away or
    writes to them. Those of a few parameters are compared, without a look at their numbers. At the eighth such step of
    the run, and whenever there are twice as many, their numbers are looked at: a loop may fill them with zeros behind
    autograd's back. Nothing is counted then, until some other number is there at a look 64 steps later or sooner, as
    where the loss had a weight of 0 at first. Gradients that are accumulated over several backward
    passes are used by one step, and count as soon as a second one finds them. What a backward pass of another model's
    step adds, as a generator's, is cleared before this one's own, and does not count.

    Args:
        optimizers: the watch's. Where there are several, one may rest while gradients pile up that it clears before it
            uses them: nothing is counted then.

    Attributes:
        run: how many there are in a row, up to the last step; 0 as well if it cannot be told.
        over: whether nothing is counted now, as the gradients were zeros when they were looked at, or no optimizer's.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> looking = Uncleared([torch.optim.SGD(layer.parameters(), lr=0.1)])
        >>> for step in range(10):
        ...     looking.before()
        ...     layer(torch.ones(1)).sum().backward()
        ...     looking.after(changed=True)
        ...     looking.updated(layer.parameters())
        >>> looking.run, looking.steps, looking.of
        (9, 9, 10)
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.run = 0
        self._latest: deque[bool] = deque(maxlen=LATEST)
        self._count = 0  # of the whole run, also while nothing is counted
        self._look = LEAST
        self._optimizers = optimizers
        self.over = False
        self._whole = False  # whether this step's gradients hold those of the last
        self._left: list[tuple[weakref.ref[nn.Parameter], tuple[int, int]]] = []  # as the last update left them

    @property
    def steps(self) -> int:
        """How many of the last steps there are."""
        return sum(self._latest)

    @property
    def of(self) -> int:
        """Of how many steps."""
        return len(self._latest)

    def before(self) -> None:
        """Look at gradients before the first backward pass of a step."""
        self._whole = bool(self._left)
        for held, then in self._left:
            if (p := held()) is None or state_of(p.grad) != then:
                self._whole = False
                break
        if self._whole and self._count + 1 >= self._look:
            self.over = not self._used()
            self._look = min(2 * self._look, self._count + 1 + LATEST) if self.over else 2 * self._look

    def after(self, *, changed: bool) -> None:
        """Hear of a backward pass of this step.

        Args:
            changed: whether it added to gradients of this model.
        """
        self._whole &= changed

    def cleared(self) -> None:
        """Hear that the gradients of this step were cleared."""
        self._whole = False

    def updated(self, parameters: Iterable[nn.Parameter]) -> None:
        """End a step.

        Args:
            parameters: a few of those that the backward pass reached.
        """
        if len(self._optimizers) != 1:
            self.run = 0
            self._latest.clear()
            return
        self._count += self._whole
        if self.over:
            self.run = 0
            self._latest.clear()
        else:
            self.run = self.run + 1 if self._whole else 0
            self._latest.append(self._whole)
        self._whole = False
        self._left = [(weakref.ref(p), state_of(p.grad)) for p in parameters if p.grad is not None]

    def _used(self) -> bool:
        """Whether the gradients are the optimizer's to use, and not all zeros."""
        held = {id(p) for each in self._optimizers for group in each.param_groups for p in group["params"]}
        those = [p for known, _ in self._left if (p := known()) is not None and id(p) in held]
        return any(bool(p.grad.any()) for p in those if p.grad is not None)
