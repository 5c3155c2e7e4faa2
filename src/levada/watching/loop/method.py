"""A tap on a method of a module: what it returns is told, and stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["MethodTap", "unseen"]


@final
class MethodTap:
    """Stands in the place of a module's method while a step is sampled; in a copy of the module it tells no one.

    Args:
        module: the module.
        name: of the method.
        told: called with what the method was given, by place, and what it returned; None for a tap that is silent.

    Example:
        >>> seen = []
        >>> tap = MethodTap(nn.Identity(), "extra_repr", lambda args, made: seen.append(made)).put()
        >>> tap(), seen, tap.remove()
        ('', [''], None)
    """

    def __init__(self, module: nn.Module, name: str, told: Callable[[Any, Any], None] | None = None) -> None:
        self._module, self._name, self._told = module, name, told
        self._before: Any = vars(module).get(name)

    def put(self) -> Self:
        """Put it on the module."""
        held = vars(self._module).get(self._name)
        if held is not self:
            self._before, self._module.__dict__[self._name] = held, self
        return self

    def remove(self) -> None:
        """Take it off, if nothing was put over it; else it stays, and tells no one."""
        if vars(self._module).get(self._name) is not self:
            self._told = None
        elif self._before is None:
            del self._module.__dict__[self._name]
        else:
            self._module.__dict__[self._name] = self._before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        own = self._before
        if own is None:
            made = getattr(type(self._module), self._name)(self._module, *args, **kwargs)
        else:
            made = own(*args, **kwargs)
        if not torch.compiler.is_compiling() and self._told is not None:
            self._told(args, made)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodTap:
        return MethodTap(copy.deepcopy(self._module, memo), self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return MethodTap, (self._module, self._name)


class unseen:  # noqa: N801  (used as a function)
    """What is computed in it is none of the model's operations: no graph, no mode, no autocast.

    A recorder must not see it, nor a checkpoint that keeps the results of some operations: it would give them back in
    the place of its own.

    Args:
        device: type of the device.
    """

    def __init__(self, device: str) -> None:
        self._entered = [
            torch.no_grad(),
            torch._C.DisableTorchFunction(),
            _disable_current_modes(),
            torch.autocast(device, enabled=False),
        ]

    def __enter__(self) -> None:
        for one in self._entered:
            one.__enter__()

    def __exit__(self, *error: Any) -> None:
        for one in reversed(self._entered):
            one.__exit__(*error)
