"""What `levada.watch` is called with: refused in a sentence where it cannot be meant."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from levada._errors import UnknownArgumentError, UsageError, require_at_least, require_number
from levada._names import OWN_SCALARS, meant
from levada.watching.measure.sample import Continue, Listener

__all__ = [
    "optimizers_of",
    "require_arguments",
    "require_cadence",
    "require_left",
    "require_listener",
    "require_options",
    "require_scalars",
]

_OPTIONS = ("run", "every", "max_overhead", "live", "listeners")  # what a trainer's callback hands on to `watch`
_STEPS = 2**62  # a record holds steps as integers of 64 bits


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


def require_cadence(every: Any, max_overhead: Any, *, owner: str = "watch") -> tuple[int, float]:
    """Return the smallest distance of samples and the largest share of the time, as plain numbers.

    Args:
        every: steps.
        max_overhead: a share, or infinity.
        owner: who was called.

    Raises:
        UsageError: if one of them is out of range, or no number.

    Example:
        >>> require_cadence(20, 0.01)
        (20, 0.01)
        >>> require_cadence(20, 2)
        Traceback (most recent call last):
        levada._errors.UsageError: watch: max_overhead must be a share of the training time, in (0, 1], got 2. Two ...
    """
    require_at_least(owner, "every", every, 1, "20 samples every twentieth step.")
    if not every < _STEPS:
        raise UsageError(f"{owner}: every must be less than 2^62, got {every}. 20 samples every twentieth step.")
    require_number(owner, "max_overhead", max_overhead)
    share = float(max_overhead)
    if not (0 < share <= 1 or share == math.inf):
        advice = "Two percent are 0.02; math.inf is without a limit." if share > 0 else "One percent is 0.01."
        rule = f"{owner}: max_overhead must be a share of the training time, in (0, 1]"
        raise UsageError(f"{rule}, got {max_overhead}. {advice}")
    return operator.index(every), share


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


def require_arguments(run: Any, scaler: Any, live: Any, listeners: Any, *, owner: str = "watch") -> list[Listener]:
    """Return the listeners, if all of this can be meant.

    Args:
        run: a folder, an address, a `Continue` or None.
        scaler: something with `get_scale`, or None.
        live: True, False or "plain".
        listeners: some.
        owner: who was called.

    Raises:
        UsageError: if one of them is something else.
    """
    place = run.folder if isinstance(run, Continue) else run
    if place is not None and not isinstance(place, str | Path):
        raise UsageError(
            f"{owner}: run must name a folder or an address, got {type(place).__name__}. Give a text or a path, or "
            "leave it out to keep no record."
        )
    if isinstance(place, str) and not place.strip():
        raise UsageError(f"{owner}: run must name a folder, got {place!r}. Leave it out to keep no record.")
    if isinstance(scaler, type) or (scaler is not None and not callable(getattr(scaler, "get_scale", None))):
        what = f"the class {scaler.__name__}" if isinstance(scaler, type) else type(scaler).__name__
        raise UsageError(
            f"{owner}: scaler must have a method get_scale(), got {what}. Give the GradScaler that the loop uses, or "
            "leave it out."
        )
    if not isinstance(live, bool) and live != "plain":
        raise UsageError(f"{owner}: live must be True, False or 'plain', got {live!r}.")
    if not isinstance(listeners, Iterable) or isinstance(listeners, str):
        came = type(listeners).__name__
        raise UsageError(f"{owner}: listeners must be a sequence of them, got {came}. Give [listener].")
    found = list(listeners)
    for one in found:
        require_listener(one, owner=owner)
    return found


def require_listener(one: Any, *, owner: str) -> None:
    """Raise unless this can hear of a watched run.

    Args:
        one: what was given as a listener.
        owner: who was called.

    Raises:
        UsageError: if it is a class, or has not the three methods.
    """
    rule = f"{owner}: a listener has the methods before_update, sampled and close"
    if isinstance(one, type):
        raise UsageError(f"{rule}, got the class {one.__name__}. Call it, and give what it returns.")
    missing = [name for name in ("before_update", "sampled", "close") if not callable(getattr(one, name, None))]
    if missing:
        raise UsageError(f"{rule}, but {type(one).__name__} has no {missing[0]}. Add it; it may do nothing.")


def require_left(again: Any, loss: Any) -> None:
    """Raise unless a step can be left with these.

    Args:
        again: makes its gradients anew, or None.
        loss: of it, or None.

    Raises:
        UsageError: if one of them is something else.
    """
    if again is not None and not callable(again):
        came = type(again).__name__
        raise UsageError(f"Watch.leave: again must be a function that makes the gradients anew, got {came}.")
    if loss is not None and not (isinstance(loss, torch.Tensor) and loss.numel() == 1):
        came = f"a tensor of {loss.numel()}" if isinstance(loss, torch.Tensor) else f"{type(loss).__name__} {loss!r}"
        raise UsageError(f"Watch.leave: loss must be a tensor of one number, got {came}. Give what the step computed.")


def require_options(owner: str, options: Mapping[str, Any], *, own: Collection[str]) -> dict[str, Any]:
    """Return what a trainer's callback hands on to `watch`: refused where it is written, not hours later.

    Args:
        owner: the callback.
        options: what it was given for the watch.
        own: its other arguments.

    Raises:
        UsageError: if `watch` would refuse one, has it not, or gets it from the trainer.
    """
    for name in options:
        if name in ("model", "optimizer", "scaler"):
            raise UsageError(f"{owner}: {name} is the trainer's, got one. Leave it out.")
        if name not in _OPTIONS:
            known = (*_OPTIONS, *own)
            near = meant(name, known) or f" It takes {', '.join(known)}."
            raise UnknownArgumentError(f"{owner}: there is no argument {name!r}.{near}")
    made = dict(options)
    made["every"], made["max_overhead"] = require_cadence(options["every"], options["max_overhead"], owner=owner)
    run, live, listeners = options.get("run"), options.get("live", False), options.get("listeners", ())
    made["listeners"] = require_arguments(run, None, live, listeners, owner=owner)
    return made


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
        came = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
        several = isinstance(optimizer, Iterable) and not isinstance(optimizer, str)
        advice = "Several are given in a list." if several else "Give None, and call Watch.step() after each update."
        raise UsageError(f"watch: the optimizer must be a torch.optim.Optimizer, got {came}. {advice}")
    return inner
