"""Residual connections whose skip learns a low-rank change."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import require_at_least
from levada.connection import ParameterRule, SingleStream

__all__ = ["LearnedAugmentedResidual"]


@final
class LearnedAugmentedResidual(SingleStream):
    """A residual connection whose skip carries a learned low-rank change of the stream beside the stream.

    `x' = x + up down x + f(x)`; with `norm=True`, `x' = x + gain (up down x) / rms(up down x) + f(x)`

    It gives the skip a little to do for few parameters and no more memory. It starts as the residual connection: `up`
    is zero; with `norm=True`, where a zero could not be normalised, `gain` is.

    Use it where a few more parameters are welcome and more streams are not. Where the memory is there,
    connections with several streams give a layer more to choose from.

    Args:
        dim: width of the stream.
        rank: width between `down` and `up`.
        norm: whether the change is normalised, as in Gemma 3n.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        epsilon: what is added to the mean square of the change.

    Shape:
        `(..., dim) -> (..., dim)`; `down` is `(rank, dim)`, `up` `(dim, rank)`, `gain` `(dim,)`.

    Cost:
        `2 rank dim` parameters, and `dim` more if `norm`; reads `2 dim` and writes `dim` elements per token in the
        forward pass at least, as the residual connection does.

    Raises:
        UsageError: if `rank` is below 1.

    Example:
        >>> connection, x = LearnedAugmentedResidual(8, rank=2), torch.randn(3, 8)
        >>> torch.equal(connection.advance(x, nn.Tanh()), x + x.tanh())
        True

    Source: Menghani, Kumar and Kumar, 2024, arXiv 2411.07501 (LAuReL).
    """

    residual_start = "exact"
    rules: ClassVar = {
        "down": ParameterRule(decay=True),
        "up": ParameterRule(decay=True),
        "gain": ParameterRule(decay=False),
    }

    def __init__(
        self,
        dim: int,
        *,
        rank: int = 64,
        norm: bool = False,
        layer: int = 0,
        depth: int = 1,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        require_at_least("LearnedAugmentedResidual", "rank", rank, 1)
        require_at_least("LearnedAugmentedResidual", "epsilon", epsilon, 0.0)
        self.epsilon = epsilon
        self.down = nn.Parameter(torch.randn(rank, dim) / math.sqrt(dim))
        self.up = nn.Parameter(torch.randn(dim, rank) / math.sqrt(rank))
        self.gain = nn.Parameter(torch.zeros(dim)) if norm else None
        self.start_as_residual()

    def start_as_residual(self) -> None:
        """Let nothing of the change through."""
        nn.init.zeros_(self.up if self.gain is None else self.gain)

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return the sum of the stream, its change and the branch's output."""
        change = functional.linear(functional.linear(state, self.down.to(state.dtype)), self.up.to(state.dtype))
        if self.gain is not None:
            full = change.to(torch.promote_types(change.dtype, torch.float32))
            change = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.epsilon) * self.gain
        return (state + change + out).to(state.dtype)
