"""Parameters that stand still from the first update on, as a count for the report: they may be meant to."""

from __future__ import annotations

import weakref
from typing import Final, final

import torch
from torch import Tensor, nn

from levada.watching.loop.places import original, plain_name
from levada.watching.steps.unoptimised import some_of

__all__ = ["Idle"]

UPDATES: Final = 64  # before it is told
_MOST: Final = 256  # parameters of which numbers are compared, too
_NAMED: Final = 3


@final
class Idle:
    """Keeps which parameters ask for no gradient, or had none, at the first update; says which have not changed since.

    A parameter has changed if something wrote into it, by the count that PyTorch keeps, or, of the first 256, if 64 of
    its numbers differ, as where a recorded graph of a GPU writes. It costs nothing where all had a gradient.

    Example:
        >>> model, idle = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), Idle()
        >>> _ = model[0].requires_grad_(False)
        >>> for _ in range(64):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     idle.before_update(model)
        >>> print(idle.told(model))
        2 of 4 parameters (0.weight, 0.bias) have not changed since the first update: they ask for no gradient ...
    """

    def __init__(self) -> None:
        self._updates = 0
        self._held: list[tuple[str, weakref.ref[nn.Parameter], int, Tensor | None]] = []

    def before_update(self, model: nn.Module | None) -> None:
        """Hear of an update, while gradients are there.

        Args:
            model: the model; None if it is not at hand.
        """
        if model is None:
            return
        self._updates += 1
        if self._updates > 1:
            return
        try:
            those = [
                (plain_name(name), p)
                for name, p in original(model).named_parameters()
                if p.grad is None and not nn.parameter.is_lazy(p)
            ]
            self._held = [
                (name, weakref.ref(p), p._version, some_of(p.detach()).clone() if i < _MOST else None)
                for i, (name, p) in enumerate(those)
            ]
        except Exception:  # what a parameter is made of is the user's: it is not known, and all else goes on
            self._held = []

    def told(self, model: nn.Module | None) -> str:
        """Say how many parameters stand still from the start; "" before 64 updates, or if none do.

        Args:
            model: the model; None if it is not at hand.
        """
        if model is None or self._updates < UPDATES:
            return ""
        try:
            held = ((name, ref(), version, numbers) for name, ref, version, numbers in self._held)
            still = [(name, p) for name, p, version, numbers in held if p is not None and _same(p, version, numbers)]
        except Exception:
            return ""
        if not still:
            return ""
        names, unasked = [name for name, _ in still], sum(not p.requires_grad for _, p in still)
        named = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        off, none = "ask for no gradient (requires_grad is False)", "ask for a gradient, and had none at that update"
        why = f"{unasked} {off}, {len(still) - unasked} {none}"
        if unasked in (0, len(still)):
            why = f"they {off if unasked else none}"
        total = sum(1 for _ in original(model).parameters())
        return f"{len(still)} of {total} parameters ({named}) have not changed since the first update: {why}."


def _same(p: nn.Parameter, version: int, numbers: Tensor | None) -> bool:
    return p._version == version and (numbers is None or torch.equal(numbers, some_of(p.detach())))
