"""What the words of a command line name: models, batches, settings."""

from __future__ import annotations

from typing import Any

from levada._errors import UsageError
from levada.targets import call, load

__all__ = ["batch_of", "model_of", "named", "require_seed", "setting"]


def model_of(target: str) -> Any:
    """Return the module that a target names or builds."""
    from torch import nn

    found = load(target)
    model = found if isinstance(found, nn.Module) else None
    if model is None and callable(found):
        model = call(target, found)
    if not isinstance(model, nn.Module):
        came = type(found if model is None else model).__name__
        raise UsageError(f"MODEL must name an nn.Module or a function that returns one, and {target} gave {came}.")
    return model


def batch_of(target: str | None) -> Any:
    """Return the batch that a target names or makes."""
    if target is None:
        return None
    found = load(target)
    return call(target, found) if callable(found) else found


def named(name: str | None) -> Any:
    """Return what a target names; a name of torch stays a name."""
    return load(name) if name is not None and ":" in name else name


def setting(text: str, option: str = "--set") -> tuple[str, str]:
    """Split `KEY=VALUE`, of an option of the command line."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"{option} takes KEY=VALUE, got {text!r}. Give a key, '=' and its value.")
    return key, value


def require_seed(seed: int) -> None:
    """Raise if torch takes no such seed."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed must be in [0, 2^63), got {seed}.")
