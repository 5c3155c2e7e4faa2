"""Highway connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_number
from levada.connection import SingleStream

__all__ = ["Highway"]


@final
class Highway(SingleStream):
    """A learned gate decides, channel by channel, how much of the branch is let in and how much of the stream is kept.

    `x' = T(x) * f(x) + C(x) * x`, with `T = sigmoid(gate(x))` and `C = 1 - T`, or `C = sigmoid(carry(x))` if uncoupled

    With a negative bias of the gate the layer starts by carrying: `T` is near 0, `x'` near `x`.

    Use it where a layer should decide from its input what it keeps, or to reproduce gated networks. Where the identity
    will do, use `Residual`: with 110 layers on CIFAR-10 exclusive gates were worse than the identity at every bias that
    was tried (He et al., 2016).

    Args:
        dim: width of the stream.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        coupled: `C = 1 - T`; False gives the carry gate its own weights, its bias starting at `-bias`.
        bias: where the transform gate's bias starts, -1 to -3 in the paper's experiments; None leaves the gate as
            `gate` makes it.
        gate: makes a gate from a width: a module that keeps the shape of the stream.

    Shape:
        `(..., dim) -> (..., dim)`.

    Cost:
        `dim (dim + 1)` parameters, and `dim (dim + 1)` more if not `coupled`, with a matrix product of that size; reads
        `2 dim` and writes `dim` elements per token in the forward pass at least.

    Raises:
        UsageError: if there is a `bias` to set and the gate has none.

    Example:
        >>> x = torch.randn(2, 3)
        >>> carrying = Highway(3, bias=-200.0)
        >>> torch.equal(carrying.advance(x, nn.Linear(3, 3)), x)
        True

    Source: Srivastava, Greff and Schmidhuber, 2015, arXiv 1505.00387 and arXiv 1507.06228.
    """

    def __init__(
        self,
        dim: int,
        *,
        layer: int = 0,
        depth: int = 1,
        coupled: bool = True,
        bias: float | None = -2.0,
        gate: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth)
        make = gate or _linear
        if bias is not None:
            require_number("Highway", "bias", bias)
        self.gate = _biased(make(dim), bias)
        self.carry = None if coupled else _biased(make(dim), None if bias is None else -bias)

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        """Return the gated sum of the stream and the branch's output."""
        transform = torch.sigmoid(self.gate(state))
        if self.carry is None:
            return state + transform * (out - state)
        return transform * out + torch.sigmoid(self.carry(state)) * state


def _linear(dim: int) -> nn.Module:
    return nn.Linear(dim, dim)


def _biased(gate: nn.Module, bias: float | None) -> nn.Module:
    if bias is None:
        return gate
    parameter = getattr(gate, "bias", None)
    if not isinstance(parameter, Tensor):
        raise UsageError(
            f"Highway: the gate must have a bias, to start at {bias}, but {type(gate).__name__} has none. "
            "Set it in your gate and pass bias=None."
        )
    nn.init.constant_(parameter, bias)
    return gate
