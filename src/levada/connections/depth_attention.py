"""Attention over depth: a layer reads a weighted mean of what all layers before it returned."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import ParameterRule
from levada.connections.history import DepthHistory, Sources, weighted_sum
from levada.connections.streams import coefficient_dtype

__all__ = ["AttentionResidual", "DepthAttention"]


@final
class DepthAttention(nn.Module):
    """A mean of sources whose weights are a softmax over depth.

    `y = sum_i a_i v_i;  a = softmax_i(scale query . v_i / rms(v_i))`

    Args:
        dim: width of a source.
        axis: axis of the channels in the output.
        scale: what the mean is multiplied by: `"mean"` by 1, `"sum"` by the number of sources.
        epsilon: what is added to the mean square of a source.

    Shape:
        sources `(..., dim)` each, channels last `-> (..., dim)`, or with the channels at `axis`; `query` is `(dim,)`.

    Cost:
        `dim` parameters; reads `m dim` and writes `dim` elements per token for m sources at least.

    Example:
        >>> sources = torch.zeros(3, 4), torch.full((3, 4), 2.0)
        >>> DepthAttention(4)(sources).unique()
        tensor([1.], grad_fn=<Unique2Backward0>)

    Source: Kimi team, 2026, arXiv 2603.15031.
    """

    rules: ClassVar = {"query": ParameterRule(decay=False)}

    def __init__(
        self, dim: int, *, axis: int = -1, scale: Literal["mean", "sum"] = "mean", epsilon: float = 1e-6
    ) -> None:
        super().__init__()
        self.axis, self.scale, self.epsilon = axis, scale, epsilon
        self.query = nn.Parameter(torch.zeros(dim))

    def forward(self, sources: Sources) -> Tensor:
        """Return the weighted mean of the sources, in their type."""
        dtype = coefficient_dtype(sources[0])
        scores = torch.stack([self._score(source.to(dtype)) for source in sources], -1)
        weights = torch.softmax(scores, -1)
        if self.scale == "sum":
            weights = weights * len(sources)
        y = weighted_sum(weights, sources).to(sources[0].dtype)
        return y if self.axis == -1 else y.movedim(-1, self.axis)

    def _score(self, source: Tensor) -> Tensor:
        inverse = torch.rsqrt(source.square().mean(-1) + self.epsilon)
        return (source * self.query.to(source.dtype)).sum(-1) * inverse

    def extra_repr(self) -> str:
        """Say the width."""
        return f"dim={len(self.query)}, scale={self.scale!r}"


@final
class AttentionResidual(DepthHistory):
    """A layer reads a mean of the input and all layers' outputs, weighted by a softmax over depth.

    `u_l = sum_{i<=l} a_i v_i`, where `a = softmax_i(query_l . v_i / rms(v_i))`, `v_0 = x` and `v_{l+1} = f_l(u_l)`

    A residual stream is the sum of all outputs with equal weights, in which each layer's share falls with depth; here a
    layer chooses by content what it reads, and the magnitude of the stream does not grow. With `block_size` S the
    outputs of S layers are summed to one source, and the running sum of the current block is the last source: memory
    then grows with depth / S, and about 8 blocks were as good as all layers.

    It starts with the query at zero: a uniform mean, which is the residual stream divided by the number of sources. A
    branch that begins with a normalisation then computes what it does behind a residual connection, up to the
    normalisation's epsilon. With `scale="sum"`, which is levada's and not the paper's, the mean is multiplied by the
    number of sources: it starts as the residual connection exactly, for any branch.

    The state is a tuple that grows: `Stack(compile=True)` compiles a layer for each number of sources.

    Use it in deep pre-norm transformers whose late layers should find early outputs by content, with `block_size` such
    that there are about 8 blocks. With one block a layer each layer reads all outputs before it, which takes the more
    time the deeper it is.

    Args:
        dim: width of the stream.
        block_size: number of layers whose outputs are summed to one source.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
        scale: `"mean"`, the paper's, or `"sum"`.
        epsilon: what is added to the mean square of a source.

    Shape:
        `(..., dim) -> (..., dim)`; the state is a tuple of `(..., dim)`, channels last. `attention.query` is `(dim,)`,
        except in layer 0, which has one source; a `DepthAttention` of its own follows the last layer.

    Cost:
        `dim` parameters, none in layer 0, and `dim` at the end; reads `(layer / block_size + 2) dim` and writes `2 dim`
        elements per token in the forward pass at least.

    Raises:
        UsageError: if `block_size` is below 1 or `scale` is unknown; if the input is not of floating point or its width
            is not `dim`.

    Example:
        >>> connection, x = AttentionResidual(4), torch.ones(1, 4)
        >>> state = connection.advance(connection.begin(x), nn.Identity())
        >>> connection.output(4)(connection.end(state))
        tensor([[1., 1., 1., 1.]], grad_fn=<AddBackward0>)

    Source: Kimi team, 2026, arXiv 2603.15031.
    """

    residual_start = "normalised"

    def __init__(
        self,
        dim: int,
        *,
        block_size: int = 1,
        layer: int = 0,
        depth: int = 1,
        axis: int = -1,
        scale: Literal["mean", "sum"] = "mean",
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__(dim, layer=layer, depth=depth, axis=axis)
        require_at_least("AttentionResidual", "block_size", block_size, 1)
        if scale not in ("mean", "sum"):
            raise UsageError(f"AttentionResidual: scale must be 'mean' or 'sum', got {scale!r}.")
        self.block_size, self.scale, self.epsilon = block_size, scale, epsilon
        self.opens_block = layer % block_size == 0
        # The first layer has one source to choose from.
        self.attention = DepthAttention(dim, axis=axis, scale=scale, epsilon=epsilon) if layer else None

    def start_as_residual(self) -> None:
        """Set the query to zero."""
        if self.attention is not None:
            nn.init.zeros_(self.attention.query)

    def begin(self, x: Tensor) -> Sources:
        """Return the input as the first source."""
        return (self.first_source(x),)

    def read(self, state: Sources) -> Tensor:
        """Return the mean of the sources."""
        sources = self.require_sources(state)
        return self.to_axis(sources[0]) if self.attention is None else self.attention(sources)

    def write(self, state: Sources, out: Tensor) -> Sources:
        """Add a source, or add to the sum of the current block."""
        out = self.from_axis(out)
        if self.opens_block:
            return (*self.require_sources(state), out)
        return (*self.require_sources(state)[:-1], state[-1] + out)

    def end(self, state: Sources) -> Sources:  # type: ignore[override]
        """Return all sources, which the module that follows puts together."""
        return self.require_sources(state)

    def output(self, dim: int) -> nn.Module:
        """Return the `DepthAttention` that puts all sources together."""
        return DepthAttention(dim, axis=self.axis, scale=self.scale, epsilon=self.epsilon)
