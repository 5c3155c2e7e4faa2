"""Collect tensors while a model runs, and measure those of one shape together."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

__all__ = ["Collector", "Slot", "to_host"]

Slot: TypeAlias = tuple[int, int]  # number of the pass; index of the site, or ~number of a value not yet assigned

_LARGE = 1 << 16  # elements; a larger tensor is measured when it comes, while it is in the cache
_TOGETHER = 256  # tensors held until they are measured: at most 64 MiB


@final
class Collector:
    """Holds references to small tensors until there are enough of them to measure in one stack.

    A tensor that something overwrites before it is measured is left out, and from then on measured when it comes.

    Args:
        measure: `(rows, ...)` and the key's options -> `(rows, columns)`.
        large: number of elements from which a tensor is measured at once.
        room: number of elements that may be held until they are measured.
    """

    def __init__(self, measure: Callable[..., Tensor], *, large: int = _LARGE, room: int = _TOGETHER * _LARGE) -> None:
        self.rows: list[tuple[list[Slot], int, Tensor]] = []
        self.hasty: set[int] = set()  # sites whose tensor is overwritten later
        self._measure = measure
        self._large = large
        self._room = room
        self._pending: dict[Hashable, list[tuple[Slot, Tensor, int]]] = {}
        self._held = self._elements = 0

    def add(self, slot: Slot, tensor: Tensor, *options: Any, at_once: bool = False) -> None:
        """Take a tensor; `options` are passed to `measure`, and only tensors with equal ones share a stack."""
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.numel() == 0:
            return
        if at_once or tensor.numel() >= self._large or tensor.is_inference() or slot[1] in self.hasty:
            with torch.no_grad():
                self.rows.append(([slot], tensor.numel(), self._measure(tensor.detach()[None], *options)))
            return
        key = (tensor.shape, tensor.dtype, tensor.device, options)
        self._pending.setdefault(key, []).append((slot, tensor, tensor._version))
        self._held += 1
        self._elements += tensor.numel()
        if self._held >= _TOGETHER or self._elements >= self._room:
            self.flush()

    def flush(self) -> None:
        """Measure what is held."""
        with torch.no_grad():
            for key, held in self._pending.items():
                intact = [(slot, tensor) for slot, tensor, version in held if tensor._version == version]
                self.hasty.update(slot[1] for slot, tensor, version in held if tensor._version != version)
                if intact:
                    stack = torch.stack([tensor.detach() for _, tensor in intact])
                    result = self._measure(stack, *key[3])  # type: ignore[index]
                    self.rows.append(([slot for slot, _ in intact], stack[0].numel(), result))
        self._pending.clear()
        self._held = self._elements = 0

    def clear(self) -> None:
        """Forget everything but what was learned about overwriting."""
        self._pending.clear()
        self._held = self._elements = 0
        self.rows = []


def to_host(blocks: list[Tensor]) -> Callable[[], list[Tensor]]:
    """Pack tensors on their device; the function returned copies them to the host, once for each device.

    Args:
        blocks: tensors of shape `(rows, columns)`.

    Example:
        >>> to_host([torch.ones(1, 2), torch.zeros(2, 1)])()
        [tensor([[1., 1.]]), tensor([[0.],
                [0.]])]
    """
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, block in enumerate(blocks):
        places.setdefault((block.device, block.dtype), []).append(index)
    shapes = [block.shape for block in blocks]
    packed = [(indices, torch.cat([blocks[i].flatten() for i in indices])) for indices in places.values()]

    def copy() -> list[Tensor]:
        parts: dict[int, Tensor] = {}
        for indices, values in packed:
            pieces = torch.split(values.cpu(), [shapes[i].numel() for i in indices])
            parts.update((i, piece.view(shapes[i])) for i, piece in zip(indices, pieces, strict=True))
        return [parts[i] for i in range(len(shapes))]

    return copy
