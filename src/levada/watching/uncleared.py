"""Gradients that are never cleared: each step adds its own to those of all steps before."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from torch import Tensor, nn

__all__ = ["LEAST", "Uncleared", "state_of"]

LEAST: Final = 8
"""Steps in a row, before their gradients are looked at, and from which on they are told of."""


def state_of(gradient: Tensor | None) -> tuple[int, int]:
    """Return what tells a gradient from what it was: another tensor, or written to.

    Args:
        gradient: of a parameter.
    """
    return (0, 0) if gradient is None else (id(gradient), gradient._version)


@final
class Uncleared:
    """Counts the steps in a row whose backward passes added to gradients that an update had used already.

    Between the end of a step and the first backward pass after it, a loop that clears gradients takes them away or
    writes to them. Those of a few parameters are compared, without a look at their numbers. At the eighth step in a row
    their numbers are looked at once: a loop may fill them with zeros behind autograd's back, and then nothing is said
    of it any more. What a backward pass of another model's step adds, as a generator's, is cleared before this one's
    own, and does not count.

    Args:
        optimizers: the watch's. Where there are several, one may rest while gradients pile up that it clears before it
            uses them: nothing is counted then.

    Attributes:
        steps: how many there are; 0 as well if it cannot be told.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> looking = Uncleared([torch.optim.SGD(layer.parameters(), lr=0.1)])
        >>> for step in range(10):
        ...     looking.before()
        ...     layer(torch.ones(1)).sum().backward()
        ...     looking.after(changed=True)
        ...     looking.updated(layer.parameters())
        >>> looking.steps
        9
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.steps = 0
        self._optimizers = optimizers
        self._over = False
        self._whole = False  # whether this step's gradients hold those of the last
        self._left: list[tuple[weakref.ref[nn.Parameter], tuple[int, int]]] = []  # as the last update left them

    def before(self) -> None:
        """Look at gradients before the first backward pass of a step."""
        self._whole = bool(self._left) and all(
            (p := held()) is not None and state_of(p.grad) == then for held, then in self._left
        )
        if self._whole and self.steps + 1 == LEAST and not self._used():
            self._over, self._whole = True, False

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
        if self._over or len(self._optimizers) != 1:
            self.steps = 0
            return
        self.steps = self.steps + 1 if self._whole else 0
        self._whole = False
        self._left = [(weakref.ref(p), state_of(p.grad)) for p in parameters if p.grad is not None]

    def _used(self) -> bool:
        """Whether the gradients are the optimizer's to use, and not all zeros."""
        held = {id(p) for each in self._optimizers for group in each.param_groups for p in group["params"]}
        those = [p for known, _ in self._left if (p := known()) is not None and id(p) in held]
        return any(bool(p.grad.any()) for p in those if p.grad is not None)
