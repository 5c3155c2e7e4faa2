"""Fully connected blocks, and the activation that keeps both signs."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from levada.blocks._options import Activation, Norm, activate, divide, normalise, widening

__all__ = ["ConcatenatedReLU", "FeedForward", "FullyConnected"]


@final
class ConcatenatedReLU(nn.Module):
    """Keep both signs: `[relu(x), relu(-x)]`, twice as wide as its input.

    Args:
        dim: the dimension to concatenate on: -1 for vectors, 1 for what a convolution returns.

    Shape:
        `(..., dim)` -> `(..., 2 dim)`.

    Example:
        >>> ConcatenatedReLU()(torch.tensor([1.0, -2.0]))
        tensor([1., 0., 0., 2.])

    Source: Shang, Sohn, Almeida and Lee, 2016, arXiv 1603.05201.
    """

    keeps_both_signs = True

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return `[relu(x), relu(-x)]`."""
        return torch.cat([F.relu(x), F.relu(-x)], self.dim)


@final
class FullyConnected(nn.Module):
    """One fully connected layer: `activation(norm(W x + b))`, or `W activation(norm(x)) + b`.

    Args:
        dim: width of the input.
        activation: builds the activation.
        dim_out: width of the output; `dim` if left out.
        norm: builds the normalisation from a width; none if left out.
        bias: whether to add `b`.
        pre_activation: normalise and activate before `W` instead of after it.

    Shape:
        `(..., dim)` -> `(..., dim_out)`.

    Raises:
        UsageError: if the activation widens its input and `dim_out` is not a multiple of that.

    Example:
        >>> block = FullyConnected(3, nn.ReLU)
        >>> bool((block(torch.randn(5, 3)) >= 0).all())
        True
    """

    def __init__(
        self,
        dim: int,
        activation: Activation = nn.ReLU,
        *,
        dim_out: int | None = None,
        norm: Norm = None,
        bias: bool = True,
        pre_activation: bool = False,
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        self.pre_activation = pre_activation
        function = activate(activation)
        # Modules are registered in the order in which they run: what reads a model by its modules relies on it.
        if pre_activation:
            self.norm = normalise(norm, dim)
            self.activation = function
            self.linear = nn.Linear(dim * widening(function), dim_out, bias=bias)
        else:
            width = divide("FullyConnected", dim_out, widening(function), "the activation's widening")
            self.linear = nn.Linear(dim, width, bias=bias)
            self.norm = normalise(norm, width)
            self.activation = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if self.pre_activation:
            return self.linear(self.activation(self.norm(x)))  # type: ignore[no-any-return]
        return self.activation(self.norm(self.linear(x)))  # type: ignore[no-any-return]


@final
class FeedForward(nn.Module):
    """The two-layer branch of a transformer: `V activation(W norm(x) + b) + c`.

    Args:
        dim: width of the input.
        hidden: width between the two layers; `4 dim` if left out.
        activation: builds the activation.
        dim_out: width of the output; `dim` if left out.
        norm: builds the normalisation from a width; `None` for none.
        bias: whether to add `b` and `c`.

    Shape:
        `(..., dim)` -> `(..., dim_out)`.

    Example:
        >>> FeedForward(8, 32)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])

    Source: Vaswani et al., 2017, arXiv 1706.03762.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        *,
        activation: Activation = nn.GELU,
        dim_out: int | None = None,
        norm: Norm = nn.LayerNorm,
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.norm = normalise(norm, dim)
        self.expand = nn.Linear(dim, hidden, bias=bias)
        self.activation = activate(activation)
        self.contract = nn.Linear(hidden * widening(self.activation), dim if dim_out is None else dim_out, bias=bias)

    def forward(self, x: Tensor, *args: object) -> Tensor:
        """Apply the branch; `args`, which a stack gives to every branch (an attention's mask), are not used."""
        return self.contract(self.activation(self.expand(self.norm(x))))  # type: ignore[no-any-return]
