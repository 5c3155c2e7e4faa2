"""Small parameters of one shape on a CPU, measured as a stack where there are no compiled loops for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.probe.squares import squares_of_rows, sums_of_squares
from levada.probe.statistics import in_memory_order
from levada.watching.measure.listed import Listed, can_be_listed, loops

__all__ = ["Stacked", "Stacks"]

_LARGEST: Final = 2**14  # elements of a parameter
_CHUNK: Final = 2**17  # elements of a stack: it fits into a cache


@final
class Stacked:
    """Parameters of one shape, all of which learn, or none.

    Args:
        rows: their numbers.
        parameters: themselves.
    """

    def __init__(self, rows: list[int], parameters: list[nn.Parameter]) -> None:
        self.rows = rows
        self.learns = parameters[0].requires_grad
        self._parameters: list[Any] = parameters
        self._count = parameters[0].numel()
        together = max(_CHUNK // self._count, 1)
        self._chunks: list[list[Any]] = [
            self._parameters[i : i + together] for i in range(0, len(parameters), together)
        ]
        self._copies: list[Tensor] = []
        self._scratch: Tensor | None = None
        self._weights = torch.empty(0)
        self._gradients: Tensor | None = None

    def fits(self) -> bool:
        """Return whether the gradients are all there, or all still to come, and can be stacked."""
        found = [p.grad for p in self._parameters]
        return all(g is None for g in found) or all(type(g) is Tensor and g.layout is torch.strided for g in found)

    def before(self, scale: float) -> None:
        """Measure weights and gradients, and keep a copy of the weights that learn.

        Args:
            scale: what the gradients are multiplied by.
        """
        stacks = [torch.stack(chunk) for chunk in self._chunks]
        self._weights = torch.cat([squares_of_rows(_rows(stack)) for stack in stacks])
        self._copies = stacks if self.learns else []
        self._gradients = self._measure_gradients(scale) if self.learns else None

    def after(self, scale: float) -> Tensor:
        """Return the columns of `ParameterNorms`, `(parameters, 5)`.

        Args:
            scale: as in `before`, for gradients that came since.
        """
        weight, count = self._weights, torch.full_like(self._weights, self._count)
        gradient = update = torch.full_like(weight, torch.nan)
        if self.learns:
            found = self._measure_gradients(scale) if self._gradients is None else self._gradients
            gradient = torch.zeros_like(weight) if found is None else found
            sums = []
            for copy, chunk in zip(self._copies, self._chunks, strict=True):
                copy.sub_(self._stack(chunk))
                sums.append(squares_of_rows(_rows(copy)))
            update = torch.cat(sums)
        bad = ~weight.isfinite() | (~gradient.isfinite() if self.learns else False)
        self._copies, self._scratch = [], None  # nothing of the model's size stays between sampled steps
        return torch.stack((weight, gradient, update, count, bad.double()), dim=1)

    def _measure_gradients(self, scale: float) -> Tensor | None:
        """Return the sums of squares; None if there are no gradients."""
        sums = []
        for chunk in self._chunks:
            found: list[Any] = [p.grad for p in chunk]
            here = [i for i, g in enumerate(found) if g is not None]
            if len(here) == len(found):
                stack = self._stack(found)
                sums.append(squares_of_rows(stack.view(len(stack), -1)))
            else:
                sums.append(torch.zeros(len(found), dtype=torch.float64))
                sums[-1][here] = sums_of_squares([found[i] for i in here])
        arrived = any(p.grad is not None for p in self._parameters)
        return torch.cat(sums).div_(scale**2) if arrived else None

    def _stack(self, values: list[Any]) -> Tensor:
        """Return a stack in memory that is used again and again."""
        if self._scratch is None:
            self._scratch = torch.empty(len(self._chunks[0]) * self._count)
        shape = (len(values), *values[0].shape)
        return torch.stack(values, out=self._scratch[: len(values) * self._count].view(shape))


def _rows(stack: Tensor) -> Tensor:
    """Return each tensor of a stack as a row, whatever the order of its memory, as that of channels that come last."""
    return stack.view(len(stack), -1) if stack.is_contiguous() else in_memory_order(stack)


@final
class Stacks:
    """The stacks that a list of parameters has, as long as nothing is frozen or moved.

    Args:
        parameters: all of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._seen: Any = None
        self._all: list[Stacked | Listed] = []

    def usable(self, room: int) -> list[Stacked | Listed]:
        """Return the stacks that can be measured now.

        Args:
            room: bytes that the copies of all weights may take; there are no stacks if they take more.
        """
        first = self._parameters[0] if self._parameters else None
        kind = first is not None and (first.device, first.dtype, loops() is None)
        seen = kind, room, [p.requires_grad for p in self._parameters]
        if seen != self._seen:
            self._seen, self._all = seen, self._make(room)
        return [stacked for stacked in self._all if stacked.fits()]

    def _make(self, room: int) -> list[Stacked | Listed]:
        taken = sum(p.numel() * p.element_size() for p in self._parameters if type(p) is nn.Parameter)
        if taken > room or not all(p.is_cpu for p in self._parameters):
            return []
        kernels = loops()
        groups: dict[tuple[torch.Size | None, bool], list[int]] = {}
        for i, p in enumerate(self._parameters):
            if type(p) is not nn.Parameter or p.layout is not torch.strided or p.dtype is not torch.float32:
                continue
            if kernels is not None and p.numel() and can_be_listed(p):
                groups.setdefault((None, p.requires_grad), []).append(i)
            elif 0 < p.numel() <= _LARGEST:
                groups.setdefault((p.shape, p.requires_grad), []).append(i)
        found: list[Stacked | Listed] = []
        for (shape, _), rows in groups.items():
            parameters = [self._parameters[i] for i in rows]
            if shape is None and kernels is not None:
                found.append(Listed(rows, parameters, kernels))
            elif len(rows) > 1:
                found.append(Stacked(rows, parameters))
        return found
