"""Weighted averages over depth: after a layer the stream is a learned combination of all outputs so far."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from levada._errors import require_at_least
from levada.connection import ParameterRule
from levada.connections.history import DepthHistory, Sources
from levada.ops import sum_depth

__all__ = ["DepthWeightedAverage"]


@final
class DepthWeightedAverage(DepthHistory):
    """After a layer, the stream is a learned combination of what all layers before it made of theirs.

    `x_{l+1} = y_l + f(y_l)`, `y_{l+1} = sum_j alpha_{l+1,j} x_j`, `y_0 = x_0`

    A few numbers for each layer let it take back what earlier layers knew, or take away what they added; in its paper a
    network of 48 blocks does as well as one of 64 without. It starts as the residual connection: `alpha` is 1 for the
    last output and 0 for all others.

    With `period` p the combination is taken after each p-th layer, and with `dilation` k over each k-th output, counted
    back from the last. A transformer block is two layers of a stack: `period=2, dilation=2` takes it after each block
    and over the outputs of blocks alone, as the paper does; with `period=2` alone attention's outputs count as well.

    The state grows with depth, as in every connection that looks back at all layers; `Stack(compile=True)` compiles a
    layer for each number of outputs.

    Use it where a look back at all layers may cost a few numbers only. All outputs are kept, whatever `dilation` and
    `period`. Where weights should follow the content, use `AttentionResidual`: at 16 layers arXiv 2603.15031 found a
    validation loss of 1.737 with that one, 1.767 with this one, 1.766 with the residual connection.

    Args:
        dim: width of the stream.
        dilation: distance between the outputs that are combined.
        period: number of layers from one combination to the next.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.

    Shape:
        `(..., dim) -> (..., dim)`; the state is the stream and all outputs. `alpha` is `(m,)` for m outputs, the oldest
        first; a layer after which nothing is combined has no parameters.

    Cost:
        `m` parameters in each `period`-th layer, for the m = `floor((layer + 1) / dilation) + 1` outputs that are
        combined; reads `(m + 1) dim` and writes `2 dim` elements per token in the forward pass at least.

    Raises:
        UsageError: if `dilation` or `period` is below 1; if the input is not of floating point or its width is not
            `dim`.

    Example:
        >>> connection = DepthWeightedAverage(3, layer=5, depth=6, dilation=2)
        >>> connection.alpha
        Parameter containing:
        tensor([0., 0., 0., 1.], requires_grad=True)

    Source: Pagliardini, Mohtashami, Fleuret and Jaggi, 2024, arXiv 2402.02622 (DenseFormer).
    """

    residual_start = "exact"
    rules: ClassVar = {"alpha": ParameterRule(decay=False)}

    def __init__(
        self, dim: int, *, dilation: int = 1, period: int = 1, layer: int = 0, depth: int = 1, axis: int = -1
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth, axis=axis)
        require_at_least("DepthWeightedAverage", "dilation", dilation, 1)
        require_at_least("DepthWeightedAverage", "period", period, 1)
        self.dilation = dilation
        self.alpha: nn.Parameter | None = None
        if (layer + 1) % period == 0:
            self.alpha = nn.Parameter(torch.zeros((layer + 1) // dilation + 1))
            self.start_as_residual()

    def start_as_residual(self) -> None:
        """Take the last output alone."""
        if self.alpha is not None:
            with torch.no_grad():
                self.alpha.zero_()
                self.alpha[-1] = 1.0

    def begin(self, x: Tensor) -> Sources:
        """Return the input as the stream, and as the first output."""
        first = self.first_source(x)
        return first, first

    def read(self, state: Sources) -> Tensor:
        """Return the stream."""
        return self.to_axis(self.require_sources(state)[0])

    def write(self, state: Sources, out: Tensor) -> Sources:
        """Add the branch's output to the stream, and combine."""
        stream, *outputs = self.require_sources(state)
        new = stream + self.from_axis(out)
        outputs.append(new)
        if self.alpha is None:
            return (new, *outputs)
        chosen = outputs[len(outputs) - 1 :: -self.dilation][::-1]
        (combined,) = sum_depth(self.alpha.unsqueeze(0), chosen)
        return (combined.to(new.dtype), *outputs)

    def end(self, state: Sources) -> Tensor:
        """Return the stream."""
        return self.read(state)

    def output(self, dim: int) -> nn.Module:
        """Return the identity: nothing is learned after the last layer."""
        return nn.Identity()
