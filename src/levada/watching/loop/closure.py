"""Optimizers that call a closure: the passes are inside of the step, and what comes before the update after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["before_its_update"]


def before_its_update(args: tuple[Any, ...], kwargs: Mapping[str, Any], ready: Callable[[], Any]) -> Any:
    """Call a function before an optimizer's update: now, or behind the first evaluation of its closure.

    Args:
        args: of `optimizer.step`, the optimizer first.
        kwargs: likewise.
        ready: the function.

    Returns:
        What a hook before the step returns: other arguments, or None.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return ready()
    first = iter((True,))

    def evaluated() -> Any:
        result = closure()
        if next(first, False):
            ready()
        return result

    return ((args[0], evaluated, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": evaluated})
