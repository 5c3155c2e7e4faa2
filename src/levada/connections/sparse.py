"""Sparse hyper-connections: many streams, all of them read, few of them written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least, require_number
from levada.connection import ParameterRule
from levada.connections.manifold import project_features
from levada.connections.streams import MultiStream, coefficient_dtype
from levada.ops import sinkhorn
from levada.ops._precision import full_precision

__all__ = ["SparseCoefficients", "SparseHyperConnection"]

_OFF_DIAGONAL = -6.0
_NORM_EPSILON = 1e-6


@final
@dataclass(eq=False, repr=False)
class SparseCoefficients:
    """What a layer multiplies its streams by, of the active ones alone; as `Coefficients` when it is taken apart.

    Attributes:
        read: weight of each stream in what the branch reads, `(..., n)`.
        index: the active streams, ascending, `(..., k)`.
        active: their state, `(..., k, dim)`.
        active_mix: `active_mix[..., i, j]` is the weight of the j-th active stream in the new i-th, `(..., k, k)`.
        active_write: weight of the branch's output in each active stream, `(..., k)`.
    """

    read: Tensor
    index: Tensor
    active: Tensor
    active_mix: Tensor
    active_write: Tensor

    def _places(self) -> Tensor:
        """Where the active streams are among all, `(..., k, n)`."""
        return nn.functional.one_hot(self.index, self.read.shape[-1]).to(self.read.dtype)

    @property
    def mix(self) -> Tensor:
        """The matrix that mixes all streams, `(..., n, n)`: the identity for those that are not active."""
        places = self._places()
        eye = torch.eye(self.active.shape[-2], dtype=places.dtype, device=places.device)
        with full_precision(places):
            return torch.diag_embed(torch.ones_like(self.read)) + places.mT @ (self.active_mix - eye) @ places

    @property
    def write(self) -> Tensor:
        """The weights of the branch's output in all streams, `(..., n)`: zero for those that are not active."""
        return (self.active_write.unsqueeze(-1) * self._places()).sum(-2)

    def __iter__(self) -> Iterator[Tensor]:
        """Give read, mix and write of all streams, which the layer itself never makes."""
        return iter((self.read, self.mix, self.write))


@final
class SparseHyperConnection(MultiStream):
    """Hyper-connections of many streams, of which each token reads all and mixes and writes a few: xHC's streams.

    `x'_a = sum_b mix_ab x_b + p_a write_a f(sum_j read_j x_j)` for a and b among the active streams, `x'_i = x_i` for
    the others, where `read = sigmoid(r (P vec(x)) / rms(vec(x)) + bias)` over all n streams;
    `u | v = (Q vec(x_active)) / rms(vec(x_active))`, `write = 2 sigmoid(s u + bias)` and `mix = sinkhorn(t v + bias)`
    over the k active ones. Active are the first m streams, with p = 1, and of the others the k - m with the largest
    `p = sigmoid(R layernorm(vec(x)))`, which is how the router learns

    Use it to study many streams: mixing all 16, the coefficients alone would take 4,608 weights for each channel, here
    they take 560. In its paper sparse writes alone gain nothing over mixing all; for a model to rely
    on use `ManifoldHyperConnection`.

    Experimental: without the augmentation of what feed-forward branches write, by causal convolutions over tokens and
    Gram-Schmidt, to which the paper's ablation gives the gain in loss (sparse writes make it affordable); each branch
    writes its one output. The paper divides rows of `mix` that sum to more than 1 by their sum: with rows normalised
    last, as here, there are none.

    levada's own, where the paper is silent: active streams are taken in their order, streams that are always active
    have no score, layernorm has no gain, and the start. At the start R is random with standard deviation 0.02, as equal
    scores would choose nothing; P and Q are zero, and r, s and t 0.01 as published; a layer reads 0.7 of the m fixed
    streams' `layer % m` and alike of all others, 1 in sum; writes once to a fixed stream, and mixes next to nothing.
    Streams differ as soon as not the same layers wrote them, and the fixed ones from the first step of training on, by
    what is read of them. It cannot start as the residual connection: streams that a layer does not write lack its
    output, and a sigmoid reads some of them.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        active: number of streams that a token writes, k.
        fixed: number of streams among them that every token writes, m.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        head: what the output is: the `"sum"` of the streams, as published, or their `"mean"`.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.

    Shape:
        `(..., dim) -> (..., dim)`; the state is `(..., n, dim)`. `projection` is `(2 n - m, n dim)`, in the order route
        (R), read (P); `active_projection` (Q) `(k + k^2, k dim)`, in the order write, mix; `bias` `(n + k + k^2,)`, in
        the order read, write, mix; `scale` (r, s, t) `(3,)`.

    Cost:
        `(2 n - m) n dim + (k + k^2)(k dim + 1) + n + 3` parameters; reads and writes `(3 n + 2) dim` elements per token
        in the forward pass at least, because the streams that stay are copied.

    Raises:
        UsageError: if `streams` or `active` is below 2, `active` is above `streams`, `fixed` is not in `[0, active]`,
            or `head` is unknown.

    Example:
        >>> connection = SparseHyperConnection(8, streams=6, active=3, fixed=1)
        >>> state = connection.begin(torch.randn(5, 8))
        >>> changed = (connection.advance(state, nn.Tanh()) != state).any(-1)
        >>> changed.sum(-1).tolist(), changed[:, 0].all().item()
        ([3, 3, 3, 3, 3], True)

    Source: Zhang et al., 2026, arXiv 2607.14530 (xHC).
    """

    rules: ClassVar = {
        "projection": ParameterRule(decay=True),
        "active_projection": ParameterRule(decay=True),
        "bias": ParameterRule(decay=False),
        "scale": ParameterRule(decay=False),
    }

    def __init__(
        self,
        dim: int,
        *,
        streams: int = 16,
        active: int = 4,
        fixed: int = 2,
        layer: int = 0,
        depth: int = 1,
        head: Literal["sum", "mean"] = "sum",
        axis: int = -1,
    ) -> None:
        super().__init__(dim, streams=streams, layer=layer, depth=depth, axis=axis)
        name = "SparseHyperConnection"
        require_at_least(name, "active", active, 2)
        require_number(name, "fixed", fixed, whole=True)
        if active > streams or not 0 <= fixed <= active:
            raise UsageError(
                f"{name}: fixed must be in [0, active] and active at most streams, got fixed={fixed}, "
                f"active={active} and streams={streams}. Change them."
            )
        if head not in ("sum", "mean"):
            raise UsageError(f"{name}: head must be 'sum' or 'mean', got {head!r}.")
        self.active, self.fixed, self.head = active, fixed, head
        projection = torch.zeros(2 * streams - fixed, streams * dim)
        nn.init.normal_(projection[: streams - fixed], std=0.02)
        self.projection = nn.Parameter(projection)
        self.active_projection = nn.Parameter(torch.zeros(active + active**2, active * dim))
        read = self.favoured(layer % (fixed or streams)).float()
        mix = _OFF_DIAGONAL * (1 - torch.eye(active)).flatten()
        self.bias = nn.Parameter(torch.cat([read.logit(), torch.zeros(active), mix]))
        self.scale = nn.Parameter(torch.full((3,), 0.01))

    def coefficients(self, state: Tensor) -> SparseCoefficients:  # type: ignore[override]
        """Return the weights that each token's streams give, in float32 (float64 for a float64 state)."""
        n, k = self.streams, self.active
        scores, read = self._full_logits(state)
        index = self._index(scores)
        active = state.gather(-2, index.unsqueeze(-1).expand(*index.shape, self.dim))
        logits = project_features(active, self.active_projection, _NORM_EPSILON)
        scale = self.scale.to(logits.dtype).unbind()
        biases = torch.split(self.bias.to(logits.dtype), [n, k, k * k])
        write, mix = torch.split(logits, [k, k * k], -1)
        # What is always written has the weight 1.
        weight = torch.cat([scores.new_ones(*scores.shape[:-1], self.fixed), scores], -1)
        return SparseCoefficients(
            torch.sigmoid(read * scale[0] + biases[0]),
            index,
            active,
            sinkhorn(torch.unflatten(mix * scale[2] + biases[2], -1, (k, k))),
            weight.gather(-1, index) * 2 * torch.sigmoid(write * scale[1] + biases[1]),
        )

    def _full_logits(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the streams that are not fixed, and the logits of what is read; one product for both."""
        with full_precision(state):
            features = state.flatten(-2).to(coefficient_dtype(state))
            projection = self.projection.to(features.dtype)
            variance, mean = torch.var_mean(features, -1, correction=0, keepdim=True)
            route, read = torch.split(
                nn.functional.linear(features, projection), [self.streams - self.fixed, self.streams], -1
            )
            # The mean, which layernorm takes off, comes off after the product.
            route = route - mean * projection[: self.streams - self.fixed].sum(-1)
            scores = torch.sigmoid(route * torch.rsqrt(variance + _NORM_EPSILON))
            return scores, read * torch.rsqrt(variance + mean.square() + _NORM_EPSILON)

    def _index(self, scores: Tensor) -> Tensor:
        """Return the active streams of each token, ascending."""
        always = torch.arange(self.fixed, device=scores.device).expand(*scores.shape[:-1], self.fixed)
        chosen = scores.topk(self.active - self.fixed, -1).indices.sort(-1).values + self.fixed
        return torch.cat([always, chosen], -1)

    def update(self, coefficients: Any, state: Tensor, out: Tensor) -> Tensor:
        """Return the state with its active streams mixed and written."""
        c: SparseCoefficients = coefficients
        out = self.from_axis(out).unsqueeze(-2)
        with full_precision(state):
            mixed = c.active_mix @ c.active.to(c.active_mix.dtype)
        new = (mixed + c.active_write.unsqueeze(-1) * out).to(state.dtype)
        return state.scatter(-2, c.index.unsqueeze(-1).expand(new.shape), new)

    def end(self, state: Tensor) -> Tensor:
        """Return the sum of the streams, or their mean."""
        if self.head == "mean":
            return super().end(state)
        return self.to_axis(self.require_streams(state).sum(-2))

    def extra_repr(self) -> str:
        """Say the width, the number of streams, and how many of them are written."""
        return f"{super().extra_repr()}, active={self.active}, fixed={self.fixed}"
