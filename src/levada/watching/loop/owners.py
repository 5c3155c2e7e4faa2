"""Which module an optimizer trains, found among everything that is alive."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

__all__ = ["Trained", "find_trained", "held_by"]


@final
@dataclass(frozen=True, slots=True)
class Trained:
    """A model, and the optimizers that train it.

    Attributes:
        model: the outermost module that holds the parameters, whatever wraps them; a `ModuleList` of the outermost
            modules that hold some, where none holds all.
        optimizers: the one that was asked for, then those that train other parameters of this model.
    """

    model: nn.Module
    optimizers: tuple[Optimizer, ...]


def find_trained(optimizer: Optimizer) -> Trained | None:
    """Find the model that an optimizer trains, with the model's other optimizers.

    The garbage collector lists what is alive, so that a model is found however it was made: built, loaded, copied,
    compiled, wrapped for several processes. Where several outermost modules hold the parameters, the one with the
    fewest others is taken, and of those the one with the most modules, which is a wrapper of the other.

    Args:
        optimizer: any.

    Returns:
        None if no module that is alive holds a parameter of it.

    Cost:
        One walk over all objects that the collector tracks, a tenth of a second for a million.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> trained = find_trained(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> trained.model is model
        True
    """
    wanted = held_by(optimizer)
    modules, optimizers = _alive()
    model = _owner(wanted, _outermost(modules))
    if model is None:
        return None
    held = {id(parameter) for parameter in model.parameters()}
    taken, kept = set(wanted), [optimizer]
    for other in optimizers:
        others = held_by(other)
        # One that shares parameters is a wrapper of the first, or its predecessor.
        if other is not optimizer and others and others <= held and not others & taken:
            kept.append(other)
            taken |= others
    return Trained(model, tuple(kept))


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the identities of the parameters that an optimizer holds."""
    try:
        return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    except Exception:  # one that is half made, or a wrapper without an inside
        return set()


def _alive() -> tuple[list[nn.Module], list[Optimizer]]:
    modules, optimizers = [], []
    for one in gc.get_objects():
        # Not isinstance, which asks the object: a lazy proxy would load what it stands for.
        if issubclass(type(one), nn.Module):
            if "_parameters" in one.__dict__ and "_modules" in one.__dict__:
                modules.append(one)
        elif issubclass(type(one), Optimizer):
            optimizers.append(one)
    return modules, optimizers


def _outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    modules = list(modules)
    inside = {id(child) for module in modules for child in module._modules.values() if child is not None}
    return [module for module in modules if id(module) not in inside]


def _owner(wanted: set[int], roots: Iterable[nn.Module]) -> nn.Module | None:
    found: list[tuple[set[int], Any]] = []
    for root in roots:
        held = {id(parameter) for parameter in root.parameters()}
        if held & wanted:
            found.append((held, root))
    whole = [(len(held), -sum(1 for _ in root.modules()), i) for i, (held, root) in enumerate(found) if held >= wanted]
    if whole:
        return found[min(whole)[2]][1]  # type: ignore[no-any-return]
    parts: list[nn.Module] = []
    left = set(wanted)
    for held, root in sorted(found, key=lambda one: len(one[0] & wanted), reverse=True):
        if held & left:
            parts.append(root)
            left -= held
    return nn.ModuleList(parts) if parts else None
