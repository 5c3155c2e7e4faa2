"""A hook that does not outlive its probe in copies of the model, and of which pickled ones need no levada."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, Final, final

__all__ = ["NOTHING", "Hook", "measures"]

NOTHING: Final = getattr, (nullcontext(), "__exit__")
"""What `__reduce__` of a hook gives: it takes anything and does nothing, and can be read where there is no levada."""


@final
class Hook:
    """A hook that a copy of the model does not inherit: copied or pickled, it becomes one that does nothing.

    What is pickled while a model is watched, as by `torch.save(model)`, is read without levada.

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
        return NOTHING


def measures(hook: object) -> bool:
    """Return whether a hook only measures, so that what a model computes is the same without it.

    Args:
        hook: any.
    """
    return getattr(type(hook), "measures", False) is True or isinstance(getattr(hook, "__self__", None), nullcontext)


def _ignore(*_: Any) -> None:
    return None
