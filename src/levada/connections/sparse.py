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
from levada.connections.streams import MultiStream, Unwritten
from levada.ops import sinkhorn, write_streams
from levada.ops._define import is_observed
from levada.ops._precision import full_precision
from levada.ops.manifold import Form, read_streams
from levada.ops.sparse import read_and_score, replace_rows
from levada.ops.sparse.reference import logits

__all__ = ["SparseCoefficients", "SparseHyperConnection"]

_OFF_DIAGONAL = -6.0
_NORM_EPSILON = 1e-6
_FORM = Form(norm_epsilon=_NORM_EPSILON)


def _places(index: Tensor, n: int) -> Tensor:
    """Return where chosen streams are among those of all tokens, one below the other."""
    tokens = index.shape[:-1].numel()
    starts = n * torch.arange(tokens, device=index.device).unsqueeze(-1)
    return (index.reshape(tokens, index.shape[-1]) + starts).flatten()


def _rows(state: Tensor, index: Tensor) -> Tensor:
    """Return chosen streams of each token: whole rows, which takes less than to gather elements."""
    found = state.flatten(0, -2).index_select(0, _places(index, state.shape[-2]))
    return found.view(*index.shape, state.shape[-1])


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

    The output is the sum of n streams, each of which begins as the input: at the start it is about n times as large,
    16 times with 16 streams. A normalisation behind it takes that off; where there is none, `head="mean"` does.

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
        found, _ = logits(state, self.projection, _NORM_EPSILON)
        scores, read = torch.sigmoid(found[..., : n - self.fixed]), found[..., n - self.fixed :]
        index = self._index(scores)
        active = _rows(state, index)
        of_active = project_features(active, self.active_projection, _NORM_EPSILON)
        scale = self.scale.to(of_active.dtype).unbind()
        biases = torch.split(self.bias.to(of_active.dtype), [n, k, k * k])
        write, mix = torch.split(of_active, [k, k * k], -1)
        return SparseCoefficients(
            torch.sigmoid(read * scale[0] + biases[0]),
            index,
            active,
            sinkhorn(torch.unflatten(mix * scale[2] + biases[2], -1, (k, k))),
            self._weights(scores, index) * 2 * torch.sigmoid(write * scale[1] + biases[1]),
        )

    def open(self, state: Tensor | Unwritten) -> tuple[Tensor, Any, Tensor]:
        """Return what the branch reads, the coefficients, and the streams to write to."""
        assert isinstance(state, Tensor)  # as no layer of these defers
        if is_observed() or "coefficients" in vars(self):
            return super().open(state)
        n, k = self.streams, self.active
        scale, bias = torch.split(self.scale, [1, 2]), torch.split(self.bias, [n, k + k * k])
        x, read, scores, state = read_and_score(state, self.projection, scale[0], bias[0], _NORM_EPSILON)
        index = self._index(scores)
        # The operation projects weights that read, too, which here nobody asks for: k rows of zeros.
        projection = nn.functional.pad(self.active_projection, (0, 0, k, 0))
        own = projection, nn.functional.pad(scale[1], (1, 0)), nn.functional.pad(bias[1], (k, 0)), _FORM
        _, _, write, mix, active = read_streams(_rows(state, index), *own)
        assert mix is not None
        coefficients = SparseCoefficients(read, index, active, mix, self._weights(scores, index) * write)
        return self.to_axis(x), coefficients, state

    def _weights(self, scores: Tensor, index: Tensor) -> Tensor:
        """Return what the output's weights in the active streams are multiplied by: 1 for what is always written."""
        return torch.cat([scores.new_ones(*scores.shape[:-1], self.fixed), scores], -1).gather(-1, index)

    def _index(self, scores: Tensor) -> Tensor:
        """Return the active streams of each token, ascending."""
        always = torch.arange(self.fixed, device=scores.device).expand(*scores.shape[:-1], self.fixed)
        chosen = scores.topk(self.active - self.fixed, -1).indices.sort(-1).values + self.fixed
        return torch.cat([always, chosen], -1)

    def update(self, coefficients: Any, state: Tensor, out: Tensor) -> Tensor:
        """Return the state with its active streams mixed and written."""
        c: SparseCoefficients = coefficients
        new = write_streams(c.active, self.from_axis(out), c.active_write, c.active_mix).to(state.dtype)
        places = _places(c.index, self.streams)
        return replace_rows(state.flatten(0, -2), places, new.reshape(-1, self.width)).view(state.shape)

    def end(self, state: Tensor) -> Tensor:
        """Return the sum of the streams, or their mean."""
        if self.head == "mean":
            return super().end(state)
        return self.to_axis(self.require_streams(state).sum(-2))

    def extra_repr(self) -> str:
        """Say the width, the number of streams, and how many of them are written."""
        return f"{super().extra_repr()}, active={self.active}, fixed={self.fixed}"
