"""The errors that levada raises on purpose, and the checks that repeat."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["MeasurementError", "MissingExtraError", "UsageError", "import_extra", "require_at_least"]


class UsageError(ValueError):
    """Something that the user gave cannot be used; the message says the rule, what came and what to do."""


class MeasurementError(RuntimeError):
    """What was given is usable, but the measurement could not be made; the verdict is `unknown`."""


class MissingExtraError(UsageError, ImportError):
    """An optional package is needed and not installed; the message names the extra that brings it."""


def require_at_least(owner: str, name: str, value: float, least: float, hint: str = "") -> None:
    """Raise unless `value >= least`.

    Args:
        owner: class or function that asks, as the user typed it.
        name: the argument's name.
        value: what came.
        least: the smallest value allowed.
        hint: one more sentence, what to do instead.

    Raises:
        UsageError: if `value` is below `least`, or is not a number.

    Example:
        >>> require_at_least("Stack", "depth", 0, 1)
        Traceback (most recent call last):
        levada._errors.UsageError: Stack: depth must be at least 1, got 0.
    """
    if not value >= least:
        raise UsageError(f"{owner}: {name} must be at least {least}, got {value}.{' ' + hint if hint else ''}")


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
