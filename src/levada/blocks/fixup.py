"""The branch that does without normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.blocks._options import Activation, activate

__all__ = ["Fixup"]


@final
class _Shift(nn.Module):
    """`x + b` with one learned number `b`."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


@final
class _Multiplier(nn.Module):
    """`s x` with one learned number `s`."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplier = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.multiplier)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.multiplier


@final
class Fixup(nn.Sequential):
    """A branch without normalisation: a chain of weights with the learned scalars of Fixup.

    `f(x) = s W_m (phi(... phi(W_1 (x + b_1) + b_2) ...) + b_{2m-1}) + b_{2m}`: a scalar bias (0 at first) before every
    weight and activation, that of the connection included, and one multiplier (1 at first). The weights themselves are
    set by `levada.initialise.fixup`.

    Args:
        weights: bias-free linear or convolutional layers, applied in turn.
        activation: builds the activation between two of them.

    Shape:
        as the weights'.

    Raises:
        UsageError: if there is no weight, or one has a bias.

    Example:
        >>> branch = Fixup([nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)])
        >>> sum(p.numel() for p in branch.parameters()) - 2 * 4 * 8
        5

    Source: Zhang, Dauphin and Ma, 2019, arXiv 1901.09321.
    """

    def __init__(self, weights: Sequence[nn.Module], activation: Activation = nn.ReLU) -> None:
        require_at_least("Fixup", "the number of weights", len(weights), 1)
        modules: list[nn.Module] = []
        for i, weight in enumerate(weights):
            if getattr(weight, "bias", None) is not None:
                raise UsageError(
                    f"Fixup: weight {i} has a bias; build it with bias=False, the branch adds scalar ones."
                )
            modules += [_Shift(), activate(activation), _Shift(), weight] if i else [_Shift(), weight]
        super().__init__(*modules, _Multiplier(), _Shift())
