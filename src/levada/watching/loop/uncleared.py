"""Gradients that are never cleared: each step adds its own to those of all steps before."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, final

from torch import Tensor, nn

__all__ = ["LEAST", "MOST", "Piles", "Uncleared", "state_of"]

LEAST: Final = 8
"""Steps, before their gradients are looked at, and from which on they are told of."""

LATEST: Final = 64
"""Steps among which those are counted: a loop that clears now and then has runs that end before a sample sees them."""


MOST: Final = 16
"""Optimizers of one watch whose gradients are followed."""


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
    step adds, as a generator's, is cleared before this one's own, and does not count: where optimizers take turns,
    gradients are looked at before each backward pass, and a write to them between two passes, as clipping too is one,
    counts as cleared.

    Args:
        optimizers: whose steps these are, one as a rule.

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
        self._added: bool | None = None  # whether something was added to them, as far as backward passes were heard of
        self._fresh = True  # no backward pass came since the last step
        self._looked: bool | None = None  # whether they were all zeros at one of the looks of this step
        self._left: list[tuple[weakref.ref[nn.Parameter], tuple[int, int]]] = []  # as the last update left them
        self._blind = False  # this step cannot be told of, as what the one before left was not seen

    @property
    def steps(self) -> int:
        """How many of the last steps there are."""
        return sum(self._latest)

    @property
    def of(self) -> int:
        """Of how many steps."""
        return len(self._latest)

    def before(self) -> None:
        """Look at gradients before a backward pass: the first of a step, or each one."""
        self._whole = bool(self._left) and (self._fresh or self._whole)
        self._fresh = False
        for held, then in self._left if self._whole else ():
            if (p := held()) is None or state_of(p.grad) != then:
                self._whole = False
                break
        if self._whole and self._count + 1 >= self._look:
            self._looked = bool(self._looked) or not self._used()

    def after(self, *, changed: bool) -> None:
        """Hear of a backward pass of this step.

        Args:
            changed: whether it added to gradients of this model.
        """
        self._added = bool(self._added) or changed
        self._left = [(held, state_of(p.grad)) for held, _ in self._left if (p := held()) is not None]

    def cleared(self) -> None:
        """Hear that the gradients of this step were cleared."""
        self._whole = False

    def forget(self) -> None:
        """Hear that the steps before were not heard: the present one is not counted."""
        self._left, self._whole, self._blind = [], False, True

    def updated(self, parameters: Iterable[nn.Parameter]) -> None:
        """End a step.

        Args:
            parameters: a few of those that the backward pass reached.
        """
        if self._looked is not None:
            self.over = self._looked
            self._look = min(2 * self._look, self._count + 1 + LATEST) if self.over else 2 * self._look
        piled = self._whole and self._added is not False
        self._count += piled
        if self.over:
            self.run = 0
            self._latest.clear()
        elif not self._blind:
            self.run = self.run + 1 if piled else 0
            self._latest.append(piled)
        self._blind = False
        self._whole, self._added, self._fresh, self._looked = False, None, True, None
        self._left = [(weakref.ref(p), state_of(p.grad)) for p in parameters if p.grad is not None]

    def _used(self) -> bool:
        """Whether the gradients are the optimizer's to use, and not all zeros."""
        held = {id(p) for each in self._optimizers for group in each.param_groups for p in group["params"]}
        those = [p for known, _ in self._left if (p := known()) is not None and id(p) in held]
        return any(bool(p.grad.any()) for p in those if p.grad is not None)


@final
class Piles:
    """The old gradients that updates used, of each optimizer of a watch by itself.

    Args:
        optimizers: the watch's; of more than 16, as where each parameter has one, nothing is counted.
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.several = len(optimizers) > 1
        self._optimizers = optimizers if len(optimizers) <= MOST else ()
        self._each = [Uncleared([one]) for one in self._optimizers] if self.several else [Uncleared(optimizers)]

    @property
    def worst(self) -> tuple[int, Uncleared] | None:
        """The number, from 1, of the optimizer with the most such steps, and its count; None where none is counted."""
        return max(enumerate(self._each, 1), key=lambda one: one[1].steps, default=None)

    def before(self, *, first: bool) -> None:
        """Look at gradients before a backward pass.

        Args:
            first: whether it is the first one of a step.
        """
        for one in self._each if first or self.several else ():
            one.before()

    def after(self, changed: Collection[int]) -> None:
        """Hear of a backward pass.

        Args:
            changed: the optimizers, from 0, to whose gradients it added.
        """
        for i, one in enumerate(self._each):
            one.after(changed=i in changed if self.several else bool(changed))

    def cleared(self) -> None:
        """Hear that the gradients of this step were cleared."""
        for one in () if self.several else self._each:
            one.cleared()

    def forget(self) -> None:
        """Hear that the steps before were not heard."""
        for one in self._each:
            one.forget()

    def stepped(self, optimizer: Any, parameters: Callable[[int], Iterable[nn.Parameter]]) -> None:
        """Hear that an optimizer has stepped.

        Args:
            optimizer: one of them.
            parameters: gives a few that it holds, by its number from 0.
        """
        for i, one in enumerate(self._optimizers if self.several else ()):
            if one is optimizer:
                self._each[i].updated(parameters(i))

    def updated(self, parameters: Iterable[nn.Parameter]) -> None:
        """End a step.

        Args:
            parameters: a few of those that the backward pass reached.
        """
        for one in () if self.several else self._each:
            one.updated(parameters)
