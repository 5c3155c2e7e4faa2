"""A hook that does not outlive its probe in copies of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, final

__all__ = ["Hook", "measures"]


@final
class Hook:
    """A hook that a copy of the model does not inherit: copied or pickled, it becomes one that does nothing.

    Args:
        function: what to call.
    """

    __slots__ = ("_function",)
    measures: ClassVar = True

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        """Call the function."""
        self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook(_ignore)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_ignore,)


def measures(hook: object) -> bool:
    """Return whether a hook only measures, so that what a model computes is the same without it.

    Args:
        hook: any.
    """
    return getattr(type(hook), "measures", False) is True


def _ignore(*_: Any) -> None:
    return None
