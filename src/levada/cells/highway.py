"""Recurrent highway networks: several layers between one time step and the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import final

import torch
from torch import Tensor, nn

from levada._errors import require_at_least
from levada.cells.cell import Cell, State, require_finite

__all__ = ["RecurrentHighway"]


@final
class RecurrentHighway(Cell):
    r"""A highway network of some layers is gone through in each time step; the input enters its first.

    $$s_l = t_l \tanh(W_H x\,[l = 1] + R_{H,l} s_{l-1} + b_{H,l}) + (1 - t_l)\, s_{l-1}, \qquad
    t_l = \sigma(W_T x\,[l = 1] + R_{T,l} s_{l-1} + b_{T,l})$$

    with $s_0$ the state before the step and $s_L$ the state after it. A gradient over $T$ steps goes through $T L$
    layers, each of which carries at first: the transition may be deep and the memory long.

    Args:
        dim_in: width of the input.
        dim: width of the state.
        depth: $L$, layers in each time step.
        transform_bias: where $b_T$ starts; below zero, a layer starts by carrying.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is s, `(batch, dim)`.

    Cost:
        `2 dim (dim_in + depth (dim + 1))` parameters.

    Raises:
        UsageError: if the depth is below 1, or the bias no finite number.

    Example:
        >>> cell = RecurrentHighway(3, 5, depth=4, transform_bias=-100.0)
        >>> s = torch.randn(2, 5)
        >>> torch.equal(cell(torch.randn(2, 3), (s,))[0], s)
        True

    Source: Zilly, Srivastava, Koutník and Schmidhuber 2017, arXiv 1607.03474.
    """

    gate = "carry gate"

    def __init__(self, dim_in: int, dim: int, *, depth: int = 3, transform_bias: float = -2.0) -> None:
        super().__init__(dim_in, dim)
        require_at_least("RecurrentHighway", "depth", depth, 1)
        require_finite("RecurrentHighway", "transform_bias", transform_bias)
        self.depth = depth
        bound = 1 / math.sqrt(dim)
        self.weight_ih = nn.Parameter(torch.empty(2 * dim, dim_in).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(depth, 2 * dim, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(depth, 2 * dim))
        with torch.no_grad():
            self.bias[:, dim:] = transform_bias

    def project(self, x: Tensor) -> Tensor:
        """Return what the first layer of each step adds from its input."""
        return nn.functional.linear(x, self.weight_ih)

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next state."""
        *_, (s, _) = self._layers(projected, state[0])
        return (s,)

    def carry(self, projected: Tensor, state: State) -> Tensor:
        """Return the product of the layers' carry gates."""
        kept = torch.ones_like(state[0])
        for _, transform in self._layers(projected, state[0]):
            kept = kept * (1 - transform)
        return kept

    @torch.no_grad()
    def carry_bias(self, logit: Tensor) -> bool:
        """Set the transform gates' biases so that all layers together carry `sigmoid(logit)`."""
        each = nn.functional.logsigmoid(logit) / self.depth  # ln of one layer's carry
        self.bias[:, self.dim :] = (-torch.expm1(each)).log() - each
        return True

    def recurrent_weights(self) -> Iterable[Tensor]:
        """Return the two matrices of each layer."""
        return torch.split(self.weight_hh.detach().flatten(0, 1), self.dim)

    def _layers(self, projected: Tensor, s: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what each layer makes of the state, and its transform gate."""
        for layer, (weight, bias) in enumerate(zip(self.weight_hh, self.bias, strict=True)):
            fed = nn.functional.linear(s, weight, bias)
            candidate, gate = (fed if layer else fed + projected).chunk(2, -1)
            transform = gate.sigmoid()
            s = s + transform * (candidate.tanh() - s)
            yield s, transform

    def extra_repr(self) -> str:
        """Say the widths and the depth."""
        return f"{self.dim_in}, {self.dim}, depth={self.depth}"
