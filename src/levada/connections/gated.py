"""Gated residual connections: streams that a layer reads through a gate for each element."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import require_at_least
from levada.connection import ParameterRule
from levada.connections.streams import Coefficients, MultiStream, coefficient_dtype
from levada.ops._define import is_observed
from levada.ops._precision import full_precision
from levada.ops.gated import read_gated

__all__ = ["GatedRead", "GatedResidual"]


@final
class GatedRead(nn.Module):
    """Read streams through a gate for each element.

    `y = (1 / n) sum_i G_i * r_i;  r_i = gain_i * x_i / rms(x_i);  G = sigmoid(up silu(down vec(r) / n))`

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        rank: width between `down` and `up`.
        axis: axis of the channels in the output.
        norm_epsilon: what is added to the mean square of a stream.

    Shape:
        `(..., n, dim) -> (..., dim)`, or with the channels at `axis`. `gain` is `(n, dim)`, `down` `(rank, n dim)`,
        `up` `(n dim, rank)`.

    Cost:
        `n dim (2 rank + 1)` parameters; reads `n dim` and writes `dim` elements per token at least.

    Example:
        >>> GatedRead(8, streams=4, rank=2)(torch.randn(3, 4, 8)).shape
        torch.Size([3, 8])

    Source: the code released with Qwen3.8 in transformers (`qwen4_exp`).
    """

    rules: ClassVar = {
        "gain": ParameterRule(decay=False),
        "down": ParameterRule(decay=True),
        "up": ParameterRule(decay=True),
    }

    def __init__(self, dim: int, *, streams: int, rank: int, axis: int = -1, norm_epsilon: float = 1e-6) -> None:
        super().__init__()
        require_at_least("GatedRead", "rank", rank, 1)
        self.axis, self.norm_epsilon = axis, norm_epsilon
        self.gain = nn.Parameter(torch.ones(streams, dim))
        self.down = nn.Parameter(0.02 * torch.randn(rank, streams * dim))
        self.up = nn.Parameter(0.02 * torch.randn(streams * dim, rank))

    def start_as_residual(self) -> None:
        """Close the gates halfway, alike for all elements: the mean of the normalised streams, halved."""
        nn.init.zeros_(self.down)

    def inverse_rms(self, state: Tensor) -> Tensor:
        """Return 1 / rms of each stream, `(..., n, 1)`, in float32 at least."""
        full = state.to(coefficient_dtype(state))
        return torch.rsqrt(full.square().mean(-1, keepdim=True) + self.norm_epsilon)

    def weights(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight of each element, `(..., n, dim)`, and the normalised streams, `(..., n dim)`."""
        factor = self.inverse_rms(state) * self.gain.to(coefficient_dtype(state))
        features = (factor * state).flatten(-2)
        with full_precision(state):
            narrow = functional.silu(functional.linear(features, self.down.to(features.dtype)) / state.shape[-2])
            gate = torch.sigmoid(functional.linear(narrow, self.up.to(features.dtype)))
        return torch.unflatten(gate, -1, state.shape[-2:]) * factor / state.shape[-2], features

    def forward(self, state: Tensor) -> Tensor:
        """Return the gated mean of the normalised streams, in their type."""
        y, _, _ = read_gated(state, self.gain, self.down, self.up, None, self.norm_epsilon)
        return y if self.axis == -1 else y.movedim(-1, self.axis)

    def extra_repr(self) -> str:
        """Say the width, the number of streams and the rank."""
        streams, dim = self.gain.shape
        return f"dim={dim}, streams={streams}, rank={len(self.down)}"


@final
class GatedResidual(MultiStream):
    """Streams that a layer reads through a gate for each element, and writes to by one weight for each stream.

    `x'_i = x_i + write_i f((1 / n) sum_j G_j * r_j)`, where `r_j = gain_j * x_j / rms(x_j)`,
    `G = sigmoid(up silu(down vec(r) / n))` and `write = 2 sigmoid(projection vec(r) / n)`

    What is read is normalised: it takes the place of the normalisation with which a branch begins. Nothing is mixed,
    and there are no weights that do not follow the token. The gates bound what is written and read, so that the streams
    can be kept in low precision. In its authors' comparison at scale it was a little ahead of mHC.

    Use it to train a pre-norm model from the start, where a layer should choose what it reads element by element. Of
    the connections with several streams it has the most parameters and keeps the most activations; where one weight for
    each stream is enough, use `IdentityHyperConnection`.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        rank: width between `down` and `up`; `dim / 8` (at least 1) if left out.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
        norm_epsilon: what is added to the mean square of a stream.

    Shape:
        `(..., dim) -> (..., dim)`; the state is `(..., n, dim)`. `projection` is `(n, n dim)`; `gated` is a
        `GatedRead`, and another one follows the last layer.

    Cost:
        `n dim (2 rank + n + 1)` parameters; reads and writes `(3 n + 2) dim` elements per token in the forward pass at
        least, with two passes: one to read, one to write.

    Raises:
        UsageError: if `streams` is below 2 or `rank` below 1.

    Example:
        >>> connection, x = GatedResidual(8, streams=4), torch.randn(2, 8)
        >>> connection.start_as_residual()
        >>> u = connection.read(connection.begin(x))
        >>> torch.allclose(functional.normalize(u, dim=-1), functional.normalize(x, dim=-1), atol=1e-5)
        True

    Source: the code released with Qwen3.8 in transformers (`qwen4_exp`).
    """

    residual_start = "normalised"
    rules: ClassVar = {"projection": ParameterRule(decay=True)}

    def __init__(
        self,
        dim: int,
        *,
        streams: int = 4,
        rank: int | None = None,
        layer: int = 0,
        depth: int = 1,
        axis: int = -1,
        norm_epsilon: float = 1e-6,
    ) -> None:
        super().__init__(dim, streams=streams, layer=layer, depth=depth, axis=axis)
        self.rank = max(dim // 8, 1) if rank is None else rank
        require_at_least("GatedResidual", "rank", self.rank, 1)
        require_at_least("GatedResidual", "norm_epsilon", norm_epsilon, 0.0)
        self.norm_epsilon = norm_epsilon
        self.gated = GatedRead(dim, streams=streams, rank=self.rank, norm_epsilon=norm_epsilon)
        self.projection = nn.Parameter(0.02 * torch.randn(streams, streams * dim))

    def start_as_residual(self) -> None:
        """Read the direction of the mean stream, favouring stream `layer % n`, and write to all.

        A branch that begins with a normalisation then computes what it does behind a residual connection, up to the
        normalisations' epsilons, and so does what follows the last layer.
        """
        shares = self.favoured(self.layer).unsqueeze(-1)
        with torch.no_grad():
            # Twice, because closed gates let half through.
            self.gated.gain.copy_((2 * self.streams * shares).expand_as(self.gated.gain))
            self.projection.zero_()
        self.gated.start_as_residual()

    def coefficients(self, state: Tensor) -> Coefficients:
        """Return the weights that each token's streams give, in float32 (float64 for a float64 state)."""
        read, features = self.gated.weights(state)
        with full_precision(state):
            logits = functional.linear(features, self.projection.to(features.dtype)) / self.streams
        return Coefficients(read, None, 2 * torch.sigmoid(logits))

    def open(self, state: Any) -> tuple[Tensor, Coefficients, Tensor]:
        """Return what the branch reads, the weights that write, and the streams to write to, by one operation."""
        if is_observed() or "coefficients" in vars(self):  # somebody looks at what is made
            return super().open(state)
        gated = self.gated
        x, writes, streams = read_gated(state, gated.gain, gated.down, gated.up, self.projection, self.norm_epsilon)
        # A weight for each element would be as large as the streams: nobody asks for them here.
        return self.to_axis(x), Coefficients(writes.new_empty(0), None, writes), streams

    def end(self, state: Tensor) -> Tensor:
        """Return the streams: a `GatedRead` follows."""
        return self.require_streams(state)

    def output(self, dim: int) -> nn.Module:
        """Return the `GatedRead` that puts the streams together."""
        return GatedRead(dim, streams=self.streams, rank=self.rank, axis=self.axis, norm_epsilon=self.norm_epsilon)
