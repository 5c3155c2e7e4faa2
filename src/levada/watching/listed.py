"""Parameters on a CPU, measured in one call for all of them: weights are read once before a step and once after it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.ops.statistics import cpu
from levada.ops.statistics.reference import COLUMNS, SQUARES

__all__ = ["Listed", "can_be_listed", "loops"]

_BUFFER: Final = 2**20  # elements that are copied side by side: the system takes larger memory back, and clears it


def loops() -> ModuleType | None:
    """Return the compiled loops, if something has loaded them: that takes time, and is not done for one step."""
    return sys.modules.get("levada.ops.statistics.loops")


def can_be_listed(tensor: Tensor) -> bool:
    """Return whether an address and a length are all that there is to a tensor."""
    return tensor.is_cpu and tensor.dtype is torch.float32 and tensor.layout is torch.strided and tensor.is_contiguous()


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
        self._buffers: list[Tensor] = []
        self._targets = self._weights = torch.empty(0)
        self._gradients: Tensor | None = None

    def fits(self) -> bool:
        """Return whether addresses can be taken, and the gradients are all there, or all still to come."""
        found = [p.grad for p in self._parameters]
        return self._are_whole() and (
            all(g is None for g in found) or all(type(g) is Tensor and can_be_listed(g) for g in found)
        )

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
            if not self._are_whole():
                raise RuntimeError("a parameter was replaced while the optimizer stepped")
            found = self._measure_gradients(scale) if self._gradients is None else self._gradients
            gradient = torch.zeros_like(weight) if found is None else found
            update = self._run(self._loops.differences)
        bad = ~weight.isfinite() | (~gradient.isfinite() if self.learns else False)
        self._buffers = []  # nothing of the model's size stays between sampled steps
        return torch.stack((weight, gradient, update, self._counts.double(), bad.double()), dim=1)

    def _are_whole(self) -> bool:
        return all(
            p.numel() == size and can_be_listed(p) for p, size in zip(self._parameters, self._sizes, strict=True)
        )

    def _allocate(self) -> Tensor:
        """Make room for copies, and return their addresses."""
        addresses, used = [], _BUFFER
        for size in self._sizes:
            if used + size > _BUFFER:
                self._buffers.append(torch.empty(max(size, min(_BUFFER, sum(self._sizes)))))
                used = 0
            addresses.append(self._buffers[-1].data_ptr() + used * self._buffers[-1].element_size())
            used += size
        return torch.tensor(addresses)

    def _run(self, loop: Any) -> Tensor:
        found = torch.empty(len(self.rows), dtype=torch.float64)
        pointers = torch.tensor([p.data_ptr() for p in self._parameters])
        self._loops.over_tokens(loop, [pointers, self._counts, self._targets, found], work=sum(self._sizes))
        return found

    def _measure_gradients(self, scale: float) -> Tensor | None:
        """Return the sums of squares; None if there are no gradients."""
        found = [(i, p.grad) for i, p in enumerate(self._parameters) if p.grad is not None]
        if not found:
            return None
        sums = _squares([g for _, g in found])
        if len(found) < len(self.rows):
            all_sums = torch.zeros(len(self.rows), dtype=torch.float64)
            all_sums[[i for i, _ in found]] = sums
            sums = all_sums
        return sums.div_(scale**2)


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    return cpu.statistics(tensors, [SQUARES] * len(tensors))[:, COLUMNS.index("squares")]
