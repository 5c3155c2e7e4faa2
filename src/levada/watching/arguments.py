"""What `levada.watch` is called with: refused in a sentence where it cannot be meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from levada._errors import UsageError, require_number
from levada._names import OWN_SCALARS
from levada.watching.measure.sample import Continue, Listener

__all__ = ["optimizers_of", "require_arguments", "require_scalars"]


def optimizers_of(model: nn.Module, optimizer: Any) -> list[Any]:
    """Return the optimizers whose steps end a step, out of their wrappers.

    Args:
        model: what they train.
        optimizer: one, several in a sequence, or None.

    Raises:
        UsageError: if the model has no parameters, some without values or flattened into others, something is no
            optimizer, one holds none of the model's, or one is given twice.
    """
    held = {id(p) for p in model.parameters()}
    if not held:
        raise UsageError(f"watch: the model must have parameters, but {type(model).__name__} has none.")
    require_values(model)
    require_own_shapes(model)
    given = () if optimizer is None else tuple(optimizer) if isinstance(optimizer, list | tuple) else (optimizer,)
    if optimizer is not None and not given:
        raise UsageError(
            "watch: of several optimizers there must be one at least, got none. Give None, and call Watch.step()."
        )
    optimizers = [_unwrapped(one) for one in given]
    if twice := [one for i, one in enumerate(optimizers) if any(one is other for other in optimizers[:i])]:
        raise UsageError(
            f"watch: each of several optimizers must be another, got the same {type(twice[0]).__name__} twice. "
            "Give it once."
        )
    for one in optimizers:
        if not any(id(p) in held for group in one.param_groups for p in group["params"]):
            raise UsageError(
                f"watch: the optimizer must hold parameters of the model, but this {type(one).__name__} holds none of "
                f"{type(model).__name__}'s. Make it after the model was moved, sharded or wrapped, or give the other."
            )
    return optimizers


def require_values(model: nn.Module) -> None:
    """Raise if parameters that learn have no values yet: when they get some, others take their place.

    Args:
        model: what is to be watched.

    Raises:
        UsageError: if one is on the meta device.
    """
    if any(p.is_meta and p.requires_grad for p in model.parameters()):
        raise UsageError(
            f"watch: the model's parameters must have values, but {type(model).__name__}'s are on the meta device. "
            "Watch it once they are made, with an optimizer that was made after them."
        )


def require_own_shapes(model: nn.Module) -> None:
    """Raise if parameters lie flattened in another one, as those of the first FSDP do, whose shards are of that one.

    Args:
        model: what is to be watched.

    Raises:
        UsageError: if one does.
    """
    if any(getattr(p, "_fsdp_flattened", False) for p in model.parameters()):  # private, and all that marks them
        raise UsageError(
            "watch: the model's parameters must have their own shapes, but FullyShardedDataParallel (FSDP1) has "
            "flattened them. Shard with torch.distributed.fsdp.fully_shard (FSDP2); in Lightning that is "
            "ModelParallelStrategy, in Accelerate and the Trainer fsdp_version 2."
        )


def require_arguments(run: Any, scaler: Any, live: Any, listeners: Any) -> list[Listener]:
    """Return the listeners, if all of this can be meant.

    Args:
        run: a folder, an address, a `Continue` or None.
        scaler: something with `get_scale`, or None.
        live: True, False or "plain".
        listeners: some.

    Raises:
        UsageError: if one of them is something else.
    """
    place = run.folder if isinstance(run, Continue) else run
    if place is not None and not isinstance(place, str | Path):
        raise UsageError(f"watch: run must name a folder or an address, got {type(place).__name__}.")
    if isinstance(place, str) and not place.strip():
        raise UsageError(f"watch: run must name a folder, got {place!r}. Leave it out to keep no record.")
    if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
        raise UsageError(f"watch: scaler must have a method get_scale(), got {type(scaler).__name__}.")
    if not isinstance(live, bool) and live != "plain":
        raise UsageError(f"watch: live must be True, False or 'plain', got {live!r}.")
    if not isinstance(listeners, Iterable) or isinstance(listeners, str):
        raise UsageError(f"watch: listeners must be a sequence of them, got {type(listeners).__name__}.")
    found = list(listeners)
    for one in found:
        missing = [name for name in ("before_update", "sampled", "close") if not callable(getattr(one, name, None))]
        if missing:
            raise UsageError(
                f"watch: a listener has the methods before_update, sampled and close, but {type(one).__name__} has no "
                f"{missing[0]}."
            )
    return found


def require_scalars(scalars: Mapping[str, Any]) -> dict[str, float]:
    """Return what a loop logs as numbers.

    Args:
        scalars: name -> number, or tensor of one.

    Raises:
        UsageError: if a value is no number, or a name is that of something that the watch measures.

    Example:
        >>> require_scalars({"accuracy": torch.tensor(0.5)})
        {'accuracy': 0.5}
        >>> require_scalars({"loss": 2.0})
        Traceback (most recent call last):
        levada._errors.UsageError: Watch.log: 'loss' is measured by the watch itself, got 2.0. Leave it out, or log ...
    """
    found = {}
    for name, value in scalars.items():
        if name in OWN_SCALARS:
            other = f"train_{name}" if name == "loss" else f"my_{name}"
            raise UsageError(
                f"Watch.log: {name!r} is measured by the watch itself, got {value!r}. Leave it out, or log yours under "
                f"another name, such as {other!r}."
            )
        if isinstance(value, torch.Tensor):
            value = value.detach()
            if value.numel() != 1:
                raise UsageError(
                    f"Watch.log: {name} must be one number, got a tensor of {value.numel()}. Log its mean."
                )
        require_number("Watch.log", name, value)
        found[name] = float(value)
    return found


def _unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside of a wrapper, whose step hooks are called whoever calls it."""
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), torch.optim.Optimizer):
        inner = inner.optimizer
    if not hasattr(inner, "register_step_post_hook") or not hasattr(inner, "param_groups"):
        raise UsageError(
            f"watch: the optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}. Give None, and "
            "call Watch.step() after each update."
        )
    return inner
