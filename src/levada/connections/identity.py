"""Hyper-connections without mixing: every stream keeps itself."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import ParameterRule
from levada.connections.manifold import StreamHead, project_features
from levada.connections.streams import Coefficients, MultiStream
from levada.ops.manifold import Form

__all__ = ["IdentityHyperConnection"]

_STD = 0.006


@final
class IdentityHyperConnection(MultiStream):
    """Hyper-connections whose streams are not mixed: a layer chooses what it reads and where it writes.

    `x'_i = x_i + write_i f(sum_j read_j x_j)`, where `a | b = scale (projection vec(x)) / rms(vec(x)) + bias`,
    `read = sigmoid(a) + epsilon` and `write = 2 sigmoid(b) + epsilon`

    The composite of all mixing is the identity, so that no signal grows or dies by it. Whether learned mixing gains
    anything is open: mHC's own ablation gives it most of the gain, the report on Qwen3.8 found none. Its backward pass
    needs no stored streams to write.

    It starts as released: `projection` normal with standard deviation 0.006, `scale` 0.01, every stream read alike with
    weights near 1 / n, all of the branch written to each. The random projection tells the streams apart.

    Use it first where several streams are wanted. They take n times the memory of one; where that is too much, use
    `FractionalConnection` or `LearnedAugmentedResidual`.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
        head: what is made of the streams at the end: `"learned"`, a `StreamHead`, as released; or `"mean"`.
        epsilon: what is added to each weight.
        norm_epsilon: what is added to the mean square of the features.

    Shape:
        `(..., dim) -> (..., dim)`; the state is `(..., n, dim)`. `projection` is `(2 n, n dim)`, `bias` `(2 n,)` and
        `scale` `(2,)`, in the order read, write.

    Cost:
        `2 n (n dim + 1) + 2` parameters; reads and writes `(3 n + 2) dim` elements per token in the forward pass at
        least, with two passes: one to read, one to write.

    Raises:
        UsageError: if `streams` is below 2, or `head` is unknown.

    Example:
        >>> connection, x = IdentityHyperConnection(8, streams=4, head="mean"), torch.randn(2, 8)
        >>> connection.start_as_residual()
        >>> y = connection.end(connection.advance(connection.begin(x), nn.Tanh()))
        >>> torch.allclose(y, x + x.tanh(), atol=1e-6)
        True

    Source: the code released with Hunyuan V4 in transformers (`hy_v4`).
    """

    residual_start = "exact"
    rules: ClassVar = {
        "projection": ParameterRule(decay=True),
        "bias": ParameterRule(decay=False),
        "scale": ParameterRule(decay=False),
    }

    def __init__(
        self,
        dim: int,
        *,
        streams: int = 4,
        layer: int = 0,
        depth: int = 1,
        axis: int = -1,
        head: Literal["learned", "mean"] = "learned",
        epsilon: float = 1e-6,
        norm_epsilon: float = 1e-5,
    ) -> None:
        super().__init__(dim, streams=streams, layer=layer, depth=depth, axis=axis)
        if head not in ("learned", "mean"):
            raise UsageError(f"IdentityHyperConnection: head must be 'learned' or 'mean', got {head!r}.")
        require_at_least("IdentityHyperConnection", "epsilon", epsilon, 0.0)
        require_at_least("IdentityHyperConnection", "norm_epsilon", norm_epsilon, 0.0)
        self.head, self.epsilon, self.norm_epsilon = head, epsilon, norm_epsilon
        self.projection = nn.Parameter(_STD * torch.randn(2 * streams, streams * dim))
        self.bias = nn.Parameter(torch.cat([torch.full((streams,), -math.log(streams - 1)), torch.zeros(streams)]))
        self.scale = nn.Parameter(torch.full((2,), 0.01))

    def start_as_residual(self) -> None:
        """Read a mean that favours stream `layer % n`, write to all; nothing follows the input.

        Raises:
            UsageError: if `head` is `"learned"`.
        """
        if self.head == "learned":
            raise UsageError(
                "IdentityHyperConnection: with head='learned' the output is not the residual connection's. "
                "Pass head='mean'."
            )
        read = self.favoured(self.layer)
        write = torch.full((self.streams,), (1 - self.epsilon) / 2, dtype=torch.float64)
        with torch.no_grad():
            self.projection.zero_()
            self.bias.copy_(torch.cat([(read - self.epsilon).logit(), write.logit()]))

    def coefficients(self, state: Tensor) -> Coefficients:
        """Return the weights that each token's streams give, in float32 (float64 for a float64 state)."""
        logits = project_features(state, self.projection, self.norm_epsilon)
        scale = self.scale.to(logits.dtype).repeat_interleave(self.streams)
        read, write = torch.sigmoid(logits * scale + self.bias.to(logits.dtype)).chunk(2, -1)
        return Coefficients(read + self.epsilon, None, 2 * write + self.epsilon)

    def one_pass(self) -> Form:
        """Return the operation's form without a matrix."""
        return Form(mixes=False, read_epsilon=self.epsilon, write_epsilon=self.epsilon, norm_epsilon=self.norm_epsilon)

    def end(self, state: Tensor) -> Tensor:
        """Return the mean of the streams; or, where a `StreamHead` follows, the streams."""
        return self.require_streams(state) if self.head == "learned" else super().end(state)

    def output(self, dim: int) -> nn.Module:
        """Return a `StreamHead` that starts near the mean, or the identity."""
        if self.head == "mean":
            return nn.Identity()
        head = StreamHead(
            dim, streams=self.streams, axis=self.axis, epsilon=self.epsilon, norm_epsilon=self.norm_epsilon
        )
        nn.init.normal_(head.projection, std=_STD)
        nn.init.constant_(head.bias, -math.log(self.streams - 1))
        nn.init.constant_(head.scale, 0.01)
        return head
