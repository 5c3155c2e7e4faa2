"""The errors that levada raises on purpose, and the checks that repeat."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "MeasurementError",
    "MissingExtraError",
    "TakenError",
    "UnknownArgumentError",
    "UsageError",
    "import_extra",
    "require_at_least",
    "require_number",
    "require_switch",
]


class UsageError(ValueError):
    """Something that the user gave cannot be used; the message says the rule, what came and what to do."""


class TakenError(UsageError):
    """A new run was to begin where a run is; the message is `rule`, and then what can be done by who asked for it.

    Args:
        rule: what is needed, and what was there.
        advice: what a program can do; a command knows better what its user can.
    """

    def __init__(self, rule: str, advice: str) -> None:
        super().__init__(f"{rule} {advice}")
        self.rule = rule


class MeasurementError(RuntimeError):
    """What was given is usable, but the measurement could not be made; the verdict is `unknown`."""


class UnknownArgumentError(UsageError, TypeError):
    """A function was given an argument that it has not."""


class MissingExtraError(UsageError, ImportError):
    """An optional package is needed and not installed; the message names the extra that brings it."""


def require_at_least(owner: str, name: str, value: float, least: float, hint: str = "") -> None:
    """Raise unless `value >= least`; a count, whose `least` is an integer, must be one too.

    Args:
        owner: class or function that asks, as the user typed it.
        name: the argument's name.
        value: what came.
        least: the smallest value allowed; an integer for what is counted, a float for what is measured.
        hint: one more sentence, what to do instead.

    Raises:
        UsageError: if `value` is below `least`, is not a number, or is none that counts and should be.

    Example:
        >>> require_at_least("Stack", "depth", 0, 1)
        Traceback (most recent call last):
        levada._errors.UsageError: Stack: depth must be at least 1, got 0.
    """
    require_number(owner, name, value, whole=isinstance(least, int))
    if not value >= least:
        raise UsageError(f"{owner}: {name} must be at least {least}, got {value}.{' ' + hint if hint else ''}")


def require_number(owner: str, name: str, value: object, *, whole: bool = False) -> None:
    """Raise unless `value` is a number.

    Args:
        owner: class or function that asks, as the user typed it.
        name: the argument's name.
        value: what came.
        whole: whether it must be an integer.

    Raises:
        UsageError: if it is none.

    Example:
        >>> require_number("Stack", "depth", 2.5, whole=True)
        Traceback (most recent call last):
        levada._errors.UsageError: Stack: depth must be an integer, got 2.5.
    """
    # `int` first: what is compiled need look no further.
    good = isinstance(value, int) or hasattr(value, "__index__" if whole else "__float__")
    if isinstance(value, bool) or not good:
        raise UsageError(f"{owner}: {name} must be {'an integer' if whole else 'a number'}, got {value!r}.")


def require_switch(owner: str, name: str, value: object) -> bool:
    """Return a switch; "no" would be on.

    Args:
        owner: class or function that asks, as the user typed it.
        name: the argument's name.
        value: what came.

    Raises:
        UsageError: if it is neither True nor False.

    Example:
        >>> require_switch("LevadaCallback", "stop_on_error", "yes")
        Traceback (most recent call last):
        levada._errors.UsageError: LevadaCallback: stop_on_error must be True or False, got 'yes'.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{owner}: {name} must be True or False, got {value!r}.")
    return value


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: dotted name of the module.
        extra: the extra of levada that installs it.
        purpose: what needs it, as the subject of a sentence.

    Raises:
        MissingExtraError: if the module is not installed.

    Example:
        >>> import_extra("math", "study", "this study").sqrt(4.0)
        2.0
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtraError(
            f"{purpose} needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'levada[{extra}]'"
        ) from error
