"""Parameters on a CPU, measured in one call for all of them: weights are read once before a step and once after it."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from operator import attrgetter
from types import ModuleType
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.ops._loading import is_given_up
from levada.ops.statistics import cpu
from levada.ops.statistics.reference import COLUMNS, SQUARES

__all__ = ["Listed", "can_be_listed", "loops"]

_GRADIENT: Final = attrgetter("grad")
_KIND: Final = attrgetter("is_cpu", "dtype", "layout")
_LISTED: Final = {(True, torch.float32, torch.strided)}
_BUFFER: Final = 2**20  # elements that are copied side by side: the system takes larger memory back, and clears it


def loops() -> ModuleType | None:
    """Return the compiled loops, if something has loaded them: that takes time, and is not done for one step."""
    return None if is_given_up() else sys.modules.get("levada.ops.statistics.loops")


def can_be_listed(tensor: Tensor) -> bool:
    """Return whether an address and a length are all that there is to a tensor."""
    return tensor.is_cpu and tensor.dtype is torch.float32 and tensor.layout is torch.strided and tensor.is_contiguous()


def _can_all_be_listed(tensors: Sequence[Tensor]) -> bool:
    """Return whether all can, in less than half the time: each look is one `map` in C."""
    return {*map(_KIND, tensors)} <= _LISTED and all(map(Tensor.is_contiguous, tensors))


def _integers(numbers: Iterable[int]) -> Tensor:
    """Return integers as a tensor, in a quarter of the time that one of a list takes."""
    return torch.frombuffer(array("q", numbers), dtype=torch.int64)


@final
class Listed:
    """Parameters of float32, of any shapes, all of which learn, or none; as `Stacked` otherwise.

    Args:
        rows: their numbers.
        parameters: themselves.
        loops: what reads them.
    """

    def __init__(self, rows: list[int], parameters: list[nn.Parameter], loops: ModuleType) -> None:
        self.rows = rows
        self.learns = parameters[0].requires_grad
        self._parameters: list[Any] = parameters
        self._loops = loops
        self._sizes = [p.numel() for p in parameters]
        self._counts = torch.tensor(self._sizes)
        self._addresses: list[int] = []  # when they were last read
        self._buffers: list[Tensor] = []
        self._targets = self._weights = torch.empty(0)
        self._gradients: Tensor | None = None

    def fits(self) -> bool:
        """Return whether addresses can be taken, and the gradients are all there, or all still to come."""
        found = [*map(_GRADIENT, self._parameters)]
        kinds = {*map(type, found)}
        return self._are_whole() and (kinds == {type(None)} or (kinds == {Tensor} and _can_all_be_listed(found)))

    def before(self, scale: float) -> None:
        """Measure weights and gradients, and keep a copy of the weights that learn.

        Args:
            scale: what the gradients are multiplied by.
        """
        if self.learns:
            self._targets = self._allocate()
            self._weights = self._run(self._loops.copy)
            self._gradients = self._measure_gradients(scale)
        else:
            self._weights = _squares(self._parameters)

    def after(self, scale: float) -> Tensor:
        """Return the columns of `ParameterNorms`, `(parameters, 5)`.

        Args:
            scale: as in `before`, for gradients that came since.

        Raises:
            RuntimeError: if a parameter was moved meanwhile.
        """
        weight = self._weights
        gradient = update = torch.full_like(weight, torch.nan)
        if self.learns:
            if [*map(Tensor.data_ptr, self._parameters)] != self._addresses and not self._are_whole():
                raise RuntimeError("a parameter was replaced while the optimizer stepped")
            found = self._measure_gradients(scale) if self._gradients is None else self._gradients
            gradient = torch.zeros_like(weight) if found is None else found
            update = self._run(self._loops.differences)
        bad = ~weight.isfinite() | (~gradient.isfinite() if self.learns else False)
        self._buffers = []  # nothing of the model's size stays between sampled steps
        return torch.stack((weight, gradient, update, self._counts.double(), bad.double()), dim=1)

    def _are_whole(self) -> bool:
        return [*map(Tensor.numel, self._parameters)] == self._sizes and _can_all_be_listed(self._parameters)

    def _allocate(self) -> Tensor:
        """Make room for copies, and return their addresses."""
        addresses, used, begin = [], _BUFFER, 0
        for size in self._sizes:
            if used + size > _BUFFER:
                self._buffers.append(torch.empty(max(size, min(_BUFFER, sum(self._sizes))), dtype=torch.float32))
                used, begin = 0, self._buffers[-1].data_ptr()
            addresses.append(begin + 4 * used)
            used += size
        return _integers(addresses)

    def _run(self, loop: Any) -> Tensor:
        found = torch.empty(len(self.rows), dtype=torch.float64)
        self._addresses = [*map(Tensor.data_ptr, self._parameters)]
        pointers = _integers(self._addresses)
        self._loops.over_tokens(loop, [pointers, self._counts, self._targets, found], work=sum(self._sizes))
        return found

    def _measure_gradients(self, scale: float) -> Tensor | None:
        """Return the sums of squares; None if there are no gradients."""
        every = [*map(_GRADIENT, self._parameters)]
        found = [g for g in every if g is not None]
        if not found:
            return None
        sums = _squares(found)
        if len(found) < len(self.rows):
            all_sums = torch.zeros(len(self.rows), dtype=torch.float64)
            all_sums[[i for i, g in enumerate(every) if g is not None]] = sums
            sums = all_sums
        return sums.div_(scale**2)


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    return cpu.statistics(tensors, [SQUARES] * len(tensors))[:, COLUMNS.index("squares")]
