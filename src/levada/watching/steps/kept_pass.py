"""What is kept of a forward pass: its arguments, buffers and random states, and when they must not be believed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from levada.watching.loop.places import original, plain_name

__all__ = ["Buffers", "Kept", "Pass"]

_DEEPEST, _MOST = 32, 10_000  # levels and values of a nest of inputs: one that holds itself has no end


@final
@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass, as far as it is kept, to run it again.

    Attributes:
        step: the optimizer step that it belongs to.
        args: what the model was called with, detached; None if that is larger than the cap, was overwritten since, or
            could not be read.
        kwargs: the same.
        random_state: device -> state of its generator when the pass began.
        output_gradient: gradient of the (scaled) loss that arrived at the model's output; None if none did, or as
            above.
        autocast: type of device -> name of the number type of an autocast that the pass began in.
        buffers: name -> value when the pass began, of each buffer that was written since; None above the cap.
        number: which pass with gradients of its step it is, from 1.
        earlier: the last pass of an earlier step, without its gradient and buffers; None before there was one.
    """

    step: int
    args: tuple[Any, ...] | None
    kwargs: Mapping[str, Any] | None
    random_state: Mapping[str, Tensor]
    output_gradient: Tensor | None
    autocast: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, Tensor | None] = field(default_factory=dict)
    number: int = 1
    earlier: Pass | None = None


class Kept:
    """Detached tensors, with their versions: who writes into them later must not be believed."""

    def __init__(self, value: Any, cap: int) -> None:
        self._held: list[Tensor] = []
        self._left = _MOST
        self._value: Any = None
        self._versions: list[tuple[Tensor, int]] = []
        try:
            value = self._detached(value, 0)
            if sum(t.numel() * t.element_size() for t in self._held if t.layout is torch.strided) <= cap:
                self._versions = [(t, t._version) for t in self._held if not t.is_inference()]
                self._value = value
        except Exception:  # a mapping that reads from a disk, a list that holds itself: the loop may do as it likes
            self._value = None
        self._held = []

    def get(self) -> Any:
        """Return what is kept; None if it was too large, or was written into since."""
        return self._value if all(t._version == version for t, version in self._versions) else None

    def _detached(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise ValueError("too deep, or too many values")
        if isinstance(value, Tensor):
            self._held.append(value.detach())  # of the same memory and version, and without the graph before it
            return self._held[-1]
        if isinstance(value, Mapping):
            return {key: self._detached(item, depth + 1) for key, item in value.items()}
        if isinstance(value, tuple | list):
            items = [self._detached(item, depth + 1) for item in value]
            if not isinstance(value, tuple):
                return items
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            made = copy.copy(value)
            for entry in dataclasses.fields(value):
                object.__setattr__(made, entry.name, self._detached(getattr(value, entry.name, None), depth + 1))
            return made
        return value


class Buffers:
    """The buffers of a model as they were when a pass began; copied are those that something writes."""

    def __init__(self, model: nn.Module, cap: int) -> None:
        self._cap = cap
        self._places = [
            (plain_name(f"{path}.{key}" if path else key), module, key)
            for path, module in original(model).named_modules()
            for key in module._buffers.keys()  # noqa: SIM118  # of what torch.jit made, no dictionary
        ]
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._copies: dict[str, Tensor] = {}

    def take(self) -> None:
        """Copy those that were written since they were copied last."""
        if not self._places:
            return
        stale: list[tuple[str, Tensor]] = []
        for name, tensor in self._now():
            seen = self._seen.get(name)
            if seen is None or seen[0] is not tensor or seen[1] != tensor._version:
                self._seen[name] = tensor, tensor._version
                stale.append((name, tensor))
        held = {name for name, _ in stale}
        room = self._cap - sum(t.numel() * t.element_size() for n, t in self._copies.items() if n not in held)
        onto: list[Tensor] = []
        of: list[Tensor] = []
        for name, tensor in stale:
            room -= tensor.numel() * tensor.element_size()
            there = self._copies.get(name)
            if room < 0:
                self._copies.pop(name, None)
            elif there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                self._copies[name] = tensor.detach().clone()
            else:
                onto.append(there)
                of.append(tensor.detach())
        if onto:
            torch._foreach_copy_(onto, of)

    def written(self) -> dict[str, Tensor | None]:
        """Return what was written since, as it was."""
        found: dict[str, Tensor | None] = {}
        for name, tensor in self._now():
            seen = self._seen.get(name)
            if seen is not None and (seen[0] is not tensor or seen[1] != tensor._version):
                there = self._copies.get(name)
                found[name] = None if there is None else there.clone()
        return found

    def _now(self) -> Iterator[tuple[str, Tensor]]:
        for name, module, key in self._places:
            held = module._buffers
            tensor = held.get(key) if isinstance(held, dict) else getattr(module, key, None)
            if tensor is None or isinstance(tensor, nn.parameter.UninitializedBuffer) or hasattr(tensor, "placements"):
                continue
            if tensor.layout is torch.strided and not tensor.is_inference():
                yield name, tensor
