"""What RNN, LSTM and GRU share: two affine maps, with the names, shapes and start of `torch.nn`'s cells."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from levada._errors import UsageError
from levada.cells.cell import Cell, State, transformed

__all__ = ["AffineCell"]


class AffineCell(Cell):
    """A cell of `W_ih x + b_ih` and `W_hh h + b_hh`, whose sequences a kernel of torch's runs.

    Args:
        dim_in: width of the input.
        dim: width of h.
        bias: whether there are biases.
    """

    blocks: ClassVar[int]
    """Number of gates and candidates: each weight has so many blocks of `dim` rows."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, dim_in: int, dim: int, bias: bool) -> None:
        super().__init__(dim_in, dim)
        self.bias = bias
        rows, bound = self.blocks * dim, 1 / math.sqrt(dim)
        for name, shape in (("weight_ih", (rows, dim_in)), ("weight_hh", (rows, dim))):
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
        for name in ("bias_ih", "bias_hh"):
            value = nn.Parameter(torch.empty(rows).uniform_(-bound, bound)) if bias else None
            self.register_parameter(name, value)

    @abstractmethod
    def kernel(self, x: Tensor, first: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Call torch's kernel for one layer: h of each step, and the last tensors of the state."""

    def project(self, x: Tensor) -> Tensor:
        """Return `W_ih x + b_ih`."""
        return nn.functional.linear(x, self.weight_ih, self.bias_ih)

    def unroll(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run torch's kernel, or the loop where it cannot run: while compiling, and inside of `torch.func`."""
        if torch.compiler.is_compiling() or transformed():
            return super().unroll(x, state)
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        outputs, *last = self.kernel(x, [s[None] for s in state], [w for w in weights if w is not None])
        return outputs, tuple(s[0] for s in last)

    def recurrent_weights(self) -> Iterable[Tensor]:
        """Return the blocks of `W_hh`; nothing where it is computed from other parameters."""
        held = parametrize.is_parametrized(self, "weight_hh")
        return () if held else torch.split(self.weight_hh.detach(), self.dim)

    def gate_at(self, block: int, projected: Tensor, h: Tensor) -> Tensor:
        """Return the gate of one block."""
        rows = slice(block * self.dim, (block + 1) * self.dim)
        bias = None if self.bias_hh is None else self.bias_hh[rows]
        return (projected[..., rows] + nn.functional.linear(h, self.weight_hh[rows], bias)).sigmoid()

    @torch.no_grad()
    def set_biases(self, values: Mapping[int, Tensor | float]) -> bool:
        """Set the biases of some blocks, in the first of the two vectors; return whether there are biases."""
        if self.bias_ih is None or self.bias_hh is None:
            return False
        for block, value in values.items():
            rows = slice(block * self.dim, (block + 1) * self.dim)
            self.bias_ih[rows] = value
            self.bias_hh[rows] = 0.0
        return True

    def require_bias(self, option: str) -> None:
        """Raise unless there are biases."""
        if not self.bias:
            raise UsageError(f"{type(self).__name__}: {option} sets biases, and bias is False. Leave one of them out.")
