"""Residual connections that also carry the network's input: two numbers for each layer."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import ParameterRule
from levada.connections.history import DepthHistory, Sources

__all__ = ["InputResidual"]


@final
class InputResidual(DepthHistory):
    """Before each layer the stream is scaled and the network's input is added, by one learned number each.

    `x' = y + f(y)`, `y = a x + b x_0`

    The cheapest way to learn how much of the stream to keep, and to see the embedding at any depth: the baseline that a
    heavier connection has to beat.

    Use it before trying anything heavier, and where late layers should see the embedding. One more tensor, the input,
    is carried through all layers.

    Args:
        dim: width of the stream.
        start: `"identity"`, a = 1 and b = 0, the residual connection exactly; or `"nanochat"`, a from 1.15 down to 1.05
            and b from 0.2 down to 0.05, linearly over depth.
        period: number of layers from one such layer to the next, the others being residual. A transformer block is two
            layers of a stack: 2 has one for each block.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.

    Shape:
        `(..., dim) -> (..., dim)`; the state is the stream and the input. `scale` (a) and `input_scale` (b) are `(1,)`.

    Cost:
        2 parameters; reads `4 dim` and writes `2 dim` elements per token in the forward pass at least.

    Raises:
        UsageError: if `period` is below 1 or `start` is unknown; if the input is not of floating point or its width is
            not `dim`.

    Example:
        >>> layers = [InputResidual(2, layer=i, depth=3, start="nanochat") for i in range(3)]
        >>> [round(layer.scale.item(), 2) for layer in layers], [round(layer.input_scale.item(), 3) for layer in layers]
        ([1.15, 1.1, 1.05], [0.2, 0.125, 0.05])

    Source: the code of nanochat (Karpathy), after modded-nanogpt (Jordan et al.).
    """

    residual_start = "exact"
    rules: ClassVar = {"scale": ParameterRule(decay=False), "input_scale": ParameterRule(decay=False)}

    def __init__(
        self,
        dim: int,
        *,
        start: Literal["identity", "nanochat"] = "identity",
        period: int = 1,
        layer: int = 0,
        depth: int = 1,
        axis: int = -1,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth, axis=axis)
        require_at_least("InputResidual", "period", period, 1)
        if start not in ("identity", "nanochat"):
            raise UsageError(f"InputResidual: start must be 'identity' or 'nanochat', got {start!r}.")
        self.scale: nn.Parameter | None = None
        self.input_scale: nn.Parameter | None = None
        if layer % period == 0:
            done = layer / max(depth - 1, 1)
            scale, added = (1.0, 0.0) if start == "identity" else (1.15 - 0.1 * done, 0.2 - 0.15 * done)
            self.scale = nn.Parameter(torch.full((1,), scale))
            self.input_scale = nn.Parameter(torch.full((1,), added))

    def start_as_residual(self) -> None:
        """Keep the stream and add nothing."""
        if self.scale is not None and self.input_scale is not None:
            nn.init.ones_(self.scale)
            nn.init.zeros_(self.input_scale)

    def begin(self, x: Tensor) -> Sources:
        """Return the input as the stream, and as itself."""
        first = self.first_source(x)
        return first, first

    def read(self, state: Sources) -> Tensor:
        """Return the scaled stream plus the scaled input."""
        return self.to_axis(self._combined(state))

    def write(self, state: Sources, out: Tensor) -> Sources:
        """Add the branch's output to what it read."""
        return self._combined(state) + self.from_axis(out), state[1]

    def end(self, state: Sources) -> Tensor:
        """Return the stream."""
        return self.to_axis(self.require_sources(state)[0])

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()

    def _combined(self, state: Sources) -> Tensor:
        stream, first = self.require_sources(state)
        if self.scale is None or self.input_scale is None:
            return stream
        return (self.scale * stream + self.input_scale * first).to(stream.dtype)
