"""Optimizers whose step calls that of the class above, so that PyTorch calls their hooks twice."""

from __future__ import annotations

import sys
from typing import Any, final

from torch.optim import optimizer as torch_optimizer

__all__ = ["Nested"]


@final
class Nested:
    """Tells the hooks of an optimizer's own step from those of a step within it.

    PyTorch wraps `step` once in each class that was ever made, so that of a class whose `step` calls `super().step()`
    the hooks are called within each other. A step that raises calls no hook behind it: whether one is still under way
    is looked for in the stack, where it seems to be.

    Example:
        >>> nested, optimizer = Nested(), object()
        >>> nested.enters(optimizer), nested.leaves(optimizer)
        (False, False)
        >>> nested.enters(optimizer), nested.enters(optimizer)  # nothing is under way: the first one raised
        (False, False)
    """

    def __init__(self) -> None:
        self._depth: dict[int, int] = {}

    def enters(self, optimizer: Any) -> bool:
        """Hear that a step begins; return whether it is within another of the same optimizer.

        Args:
            optimizer: any.
        """
        key = id(optimizer)
        depth = self._depth.get(key, 0)
        if depth and _under_way(optimizer) < 2:
            depth = 0
        self._depth[key] = depth + 1
        return depth > 0

    def leaves(self, optimizer: Any) -> bool:
        """Hear that a step is over; return whether it was within another of the same optimizer.

        Args:
            optimizer: any.
        """
        key = id(optimizer)
        depth = self._depth.get(key, 1) - 1
        if depth > 0:
            self._depth[key] = depth
        else:
            self._depth.pop(key, None)
        return depth > 0


def _under_way(optimizer: Any) -> int:
    """Return how many of PyTorch's wrappers around a step of this optimizer are running in this thread."""
    found, frame = 0, sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == torch_optimizer.__file__ and frame.f_code.co_name == "wrapper":
            found += frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return found
