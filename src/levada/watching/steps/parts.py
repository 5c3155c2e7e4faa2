"""The parts of a model that a loop calls one by one, where it never calls the model itself: what it gave the first."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada.probe.hook import Hook
from levada.watching.loop.losses import in_backward
from levada.watching.loop.places import original
from levada.watching.loop.tracing import symbolic
from levada.watching.measure.given import OF, positional

__all__ = ["Parts"]

_MOST: Final = 16  # that are listened to; a call of each costs a hook


@final
class Parts:
    """Hears what the first part that runs in a step is given, as a wrapper's `net` that the loop calls.

    What the parts behind it are given is made by the model, or by the loop from what the model made; it is not heard.

    Args:
        model: it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._first = ""  # part that ran first in this step
        self._given: dict[int | str, weakref.ref[Tensor]] = {}

    def detach(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._given = {}

    def step(self) -> None:
        """Listen to the parts from now, as another step begins."""
        self._first, self._given = "", {}
        # Whether a model is called that was compiled in place cannot be told, and hooks would compile it once more.
        if self._handles or self._model._compiled_call_impl is not None:
            return
        for name, part in islice(_outermost("", original(self._model)), _MOST):
            if part._compiled_call_impl is None and not isinstance(part, torch.jit.ScriptModule):
                heard = Hook(partial(self._called, name, positional(part)))
                self._handles.append(part.register_forward_pre_hook(heard, with_kwargs=True, prepend=True))

    def given(self) -> dict[int | str, Tensor]:
        """Return the tensors that the first part was given last, as far as they are still there."""
        return {key: tensor for key, given in self._given.items() if (tensor := given()) is not None}

    def _called(self, name: str, names: list[str], part: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or in_backward() or symbolic():
            return
        self._first = self._first or name
        if name == self._first:
            placed = ((names[i] if i < len(names) else f"{i}", value) for i, value in enumerate(args))
            called = [*placed, *kwargs.items()]
            self._given = {f"{key}{OF}{name}": weakref.ref(t) for key, t in called if isinstance(t, Tensor)}


def _outermost(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules below one that can be called."""
    for key, child in module.named_children():
        path = f"{name}.{key}".lstrip(".")
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _outermost(path, child)
        else:
            yield path, child
