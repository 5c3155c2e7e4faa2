"""What the words of a command line name: models, batches, settings."""

from __future__ import annotations

import argparse
from typing import Any, Final

from levada._errors import UsageError
from levada._names import meant
from levada.targets import call, load, require

__all__ = ["LOSSES", "batch_of", "loss_of", "model_of", "named", "require_loss", "require_model", "setting"]

LOSSES: Final = ("cross_entropy", "mse", "output")


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


def loss_of(name: str | None) -> Any:
    """Return the loss that a target names; a name of ours stays a name.

    Raises:
        UsageError: if it is a class, which takes no outputs and targets.
    """
    found = named(name)
    if isinstance(found, type):
        made = f"loss = {found.__name__}()"
        raise UsageError(
            f"--loss must name a function of outputs and targets, or an instance, and {name} is a class. Make one in a "
            f"file, `{made}`, and give FILE.py:loss."
        )
    return found


def setting(text: str, option: str = "--set") -> tuple[str, str]:
    """Split `KEY=VALUE`, of an option of the command line."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"{option} takes KEY=VALUE, got {text!r}. Give a key, '=' and its value.")
    return key, value


def require_model(options: argparse.Namespace) -> None:
    """Raise before anything is imported if what says which model is looked at, and how, cannot be used."""
    require(options.model)
    for target in (options.batch, options.optimizer):
        if target is not None and (target is options.batch or ":" in target):
            require(target)
    require_loss(options.loss)


def require_loss(name: str | None) -> None:
    """Raise unless a loss is a target whose file is there, or one of the names."""
    if name is None:
        return
    if ":" in name:
        require(name)
    elif name not in LOSSES:
        what = f"--loss must be one of {', '.join(LOSSES)}, or a target such as losses.py:loss, got {name!r}."
        raise UsageError(f"{what}{meant(name, LOSSES)}")
