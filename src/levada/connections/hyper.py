"""Hyper-connections: several streams, or fractions of one, whose weights are learned and may follow each token."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import ParameterRule
from levada.connections.streams import Coefficients, MultiStream, Unwritten, coefficient_dtype
from levada.ops._define import is_observed
from levada.ops._precision import full_precision
from levada.ops.hyper import Parameters, read_hyper, write_and_read_hyper
from levada.ops.hyper.static import read_static, write_and_read_static

__all__ = ["FractionalConnection", "HyperConnection"]

_NORMS: dict[str, type[nn.LayerNorm | nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def _require_one_of(owner: str, option: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise UsageError(f"{owner}: {option} must be one of {', '.join(known)}, got {value!r}.")


def _normalised(norm: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    # In the type of x, which the norm's own forward refuses where its weights are of another.
    weight = norm.weight.to(x.dtype)
    if isinstance(norm, nn.LayerNorm):
        return nn.functional.layer_norm(x, norm.normalized_shape, weight, norm.bias.to(x.dtype), norm.eps)
    return nn.functional.rms_norm(x, list(norm.normalized_shape), weight, norm.eps)


def _product(weights: Tensor, state: Tensor) -> Tensor:
    with full_precision(state):
        return weights.expand(*state.shape[:-2], -1, -1) @ state.to(weights.dtype)


class _LearnedStreams(MultiStream):
    """Streams whose coefficients are learned numbers, plus what each stream says about its own part in them."""

    residual_start = "exact"
    rules: ClassVar = {
        "static_read": ParameterRule(decay=False),
        "static_mix": ParameterRule(decay=False),
        "static_write": ParameterRule(decay=False),
        "projection": ParameterRule(decay=True),
        "mix_scale": ParameterRule(decay=False),
        "write_scale": ParameterRule(decay=False),
    }

    def _add_parameters(self, width: int, read: Tensor, dynamic: bool, norm: str) -> None:
        _require_one_of(type(self).__name__, "norm", norm, [*_NORMS])
        n = self.streams
        self.dynamic = dynamic
        self.static_read = nn.Parameter(torch.empty_like(read))
        self.static_mix = nn.Parameter(torch.empty(n, n))
        self.static_write = nn.Parameter(torch.empty(n))
        if dynamic:
            self.sizes = [read.numel() // n, n, 1]
            self.norm = _NORMS[norm](width)
            self.projection = nn.Parameter(torch.empty(sum(self.sizes), width))
            self.mix_scale = nn.Parameter(torch.empty(1))
            self.write_scale = nn.Parameter(torch.empty(1))
        self._start(read)

    def _start(self, read: Tensor) -> None:
        with torch.no_grad():
            self.static_read.copy_(read)
        nn.init.eye_(self.static_mix)
        nn.init.ones_(self.static_write)
        if self.dynamic:
            nn.init.zeros_(self.projection)
            nn.init.constant_(self.mix_scale, 0.01)
            nn.init.constant_(self.write_scale, 0.01)

    def coefficients(self, state: Tensor) -> Coefficients:
        """Return the weights, those of each token where `dynamic`, in float32 (float64 for a float64 state)."""
        dtype = coefficient_dtype(state)
        read, mix, write = self.static_read.to(dtype), self.static_mix.to(dtype), self.static_write.to(dtype)
        if not self.dynamic:
            return Coefficients(read, mix, write)
        with full_precision(state):
            features = _normalised(self.norm, state.to(dtype))
            said = torch.tanh(nn.functional.linear(features, self.projection.to(dtype)))
        by_read, by_mix, by_write = torch.split(said, self.sizes, -1)  # the rows are streams that are read
        by_read = by_read.squeeze(-1) if read.ndim == 1 else by_read.mT
        mix_scale, write_scale = self.mix_scale.to(dtype), self.write_scale.to(dtype)
        return Coefficients(
            read + mix_scale * by_read, mix + mix_scale * by_mix.mT, write + write_scale * by_write.squeeze(-1)
        )


@final
class HyperConnection(_LearnedStreams):
    """Several copies of the stream, which each layer reads, mixes and writes with weights that are learned.

    `x'_i = sum_j mix_ij x_j + write_i f(sum_j read_j x_j)`, where
    `read_j = static_read_j + s tanh(norm(x_j) p)`, `mix_ij = static_mix_ij + s tanh(norm(x_j) q_i)` and
    `write_i = static_write_i + t tanh(norm(x_i) r)`; `p`, the `q_i` and `r` are the rows of `projection`

    Layers learn how far back they read and how strongly they write, between one after the other and side by side. The
    mixing is not bounded: `ManifoldHyperConnection` bounds it, at many layers or a high learning rate.

    It starts as the residual connection, for any branch, but for the end: layer l reads stream `l % n`, each stream
    keeps itself and gets all of the branch, and nothing depends on the token. The sum of the streams at the end is then
    n times the residual network's output, which a final normalisation takes out; the mean is the output itself. (With
    the sum, ports also scale the last matrix of each branch by `sqrt(n)` at the start, as the paper's way, in which it
    could not be found; it is the branch's business, and not done here.)

    A NaN in one stream of a token makes all streams of that token NaN after one layer: zero times NaN is NaN.

    Use it to reproduce the paper, and at moderate depth. For a deep network use `ManifoldHyperConnection`, or
    `IdentityHyperConnection`, which does not mix.

    Args:
        dim: width of a stream.
        streams: number of streams, n.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        dynamic: whether the weights follow each token; if not, s and t are zero and there are the static ones alone.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
        head: what is made of the streams at the end: `"sum"` as published, or `"mean"`.
        norm: what each stream is normalised by for the weights: `"layer"` as published, or `"rms"`.

    Shape:
        `(..., dim) -> (..., dim)`; the state is `(..., n, dim)`. `static_read` and `static_write` are `(n,)`,
        `static_mix` `(n, n)` with rows for new streams, `projection` `(n + 2, dim)` in the order read, mix, write,
        `mix_scale` (s) and `write_scale` (t) `(1,)`.

    Cost:
        `n^2 + 2 n` parameters, and `(n + 3) dim + 2` more if `dynamic`, and `dim` more if `dynamic` and `norm="layer"`;
        reads and writes `(3 n + 2) dim` elements per token in the forward pass at least, with two passes: one to read,
        one to mix and write.

    Raises:
        UsageError: if `streams` is below 2, or `head` or `norm` is unknown.

    Example:
        >>> connection, x = HyperConnection(8, streams=4, head="mean"), torch.randn(2, 8)
        >>> y = connection.end(connection.advance(connection.begin(x), nn.Tanh()))
        >>> torch.allclose(y, x + x.tanh(), atol=1e-6)
        True

    Source: Zhu, Huang, Huang, Zeng, Mao, Wu, Min and Zhou, 2024, arXiv 2409.19606.
    """

    def __init__(
        self,
        dim: int,
        *,
        streams: int = 4,
        layer: int = 0,
        depth: int = 1,
        dynamic: bool = True,
        axis: int = -1,
        head: Literal["sum", "mean"] = "sum",
        norm: Literal["layer", "rms"] = "layer",
    ) -> None:
        super().__init__(dim, streams=streams, layer=layer, depth=depth, axis=axis)
        _require_one_of("HyperConnection", "head", head, ["sum", "mean"])
        self.head = head
        self._add_parameters(dim, self._own_stream(), dynamic, norm)

    def _own_stream(self) -> Tensor:
        return torch.eye(self.streams)[self.layer % self.streams]

    def start_as_residual(self) -> None:
        """Read stream `layer % n`, write to all, mix none; nothing follows the token.

        Raises:
            UsageError: if `head` is `"sum"`.
        """
        if self.head == "sum":
            raise UsageError(
                f"HyperConnection: with head='sum' the output is {self.streams} times what the residual connection's "
                "is. Pass head='mean'."
            )
        self._start(self._own_stream())

    def reads_at_once(self) -> bool:
        """Return whether nobody looks at the weights."""
        return not is_observed() and "coefficients" not in vars(self)

    def open(self, state: Tensor | Unwritten) -> tuple[Tensor, Coefficients, Tensor]:
        """Return what the branch reads, the coefficients, and the streams to write to, by one operation."""
        if not self.reads_at_once():
            return super().open(state)
        if not self.dynamic:
            return self._open_static(state)
        norm, streams = self.norm, state.streams if isinstance(state, Unwritten) else state
        epsilon = torch.finfo(coefficient_dtype(streams)).eps if norm.eps is None else norm.eps
        own = Parameters(
            self.static_read, self.static_mix, self.static_write, self.projection,
            self.mix_scale, self.write_scale, norm.weight, getattr(norm, "bias", None),
        )  # fmt: skip
        if isinstance(state, Unwritten):
            _, mix, write = state.coefficients
            assert mix is not None
            x, read, mix, write, streams = write_and_read_hyper(streams, state.out, write, mix, own, epsilon)
        else:
            x, read, mix, write, streams = read_hyper(streams, own, epsilon)
        return self.to_axis(x), Coefficients(read, mix, write), streams

    def _open_static(self, state: Tensor | Unwritten) -> tuple[Tensor, Coefficients, Tensor]:
        """Return the same where nothing follows the token."""
        own = self.coefficients(state.streams if isinstance(state, Unwritten) else state)
        if isinstance(state, Unwritten):
            _, mix, write = state.coefficients
            assert mix is not None
            x, streams = write_and_read_static(state.streams, state.out, write, mix, own.read)
        else:
            x, streams = read_static(state, own.read)
        return self.to_axis(x), own, streams

    def end(self, state: Tensor) -> Tensor:
        """Return the sum of the streams, or their mean."""
        if self.head == "mean":
            return super().end(state)
        return self.to_axis(self.require_streams(state).sum(-2))

    def extra_repr(self) -> str:
        """Say the width, the number of streams and the options that are not the usual ones."""
        unusual = [] if self.dynamic else ["dynamic=False"]
        unusual += [] if self.head == "sum" else [f"head={self.head!r}"]
        return ", ".join([super().extra_repr(), *unusual])


@final
class FractionalConnection(_LearnedStreams):
    """One stream in m fractions, which each layer reads, mixes and writes with weights that are learned.

    `u_i = sum_j read_ij x_j`, `x'_i = sum_j mix_ij x_j + write_i f(u)_i`, where
    `read_ij = static_read_ij + s tanh(norm(x_j) p_i)`, `mix_ij = static_mix_ij + s tanh(norm(x_j) q_i)` and
    `write_i = static_write_i + t tanh(norm(x_i) r)`; the `p_i`, the `q_i` and `r` are the rows of `projection`

    Hyper-connections without more memory: the fractions are of width `dim / m`, and together are the stream, what the
    branch reads and what it returns. It gains less than `HyperConnection` does.

    It starts as the residual connection, exactly and for any branch: `static_read` and `static_mix` are the identity,
    `static_write` is one and `projection` zero.

    A NaN in one fraction of a token makes all fractions of that token NaN after one layer: zero times NaN is NaN.

    Use it where several streams would not fit in memory. Where they do, use `HyperConnection` or
    `IdentityHyperConnection`.

    Args:
        dim: width of the stream, a multiple of `fractions`.
        fractions: number of fractions, m.
        layer: index of the layer, counted from 0.
        depth: number of layers.
        dynamic: whether the weights follow each token; if not, s and t are zero and there are the static ones alone.
        axis: axis of the channels in the network's input and output, and in what a branch is given and returns.
        norm: what each fraction is normalised by for the weights: `"layer"` as published, or `"rms"`.

    Shape:
        `(..., dim) -> (..., dim)`; the state is `(..., m, dim / m)`. `static_read` and `static_mix` are `(m, m)`,
        `static_write` `(m,)`, `projection` `(2 m + 1, dim / m)` in the order read, mix, write, `mix_scale` (s) and
        `write_scale` (t) `(1,)`.

    Cost:
        `2 m^2 + m` parameters, and `(2 m + 2) dim / m + 2` more if `dynamic`, and `dim / m` more if `dynamic` and
        `norm="layer"`; reads and writes `5 dim` elements per token in the forward pass at least, with two passes: one
        to read, one to mix and write.

    Raises:
        UsageError: if `fractions` is below 2 or does not divide `dim`, or `norm` is unknown.

    Example:
        >>> connection, x = FractionalConnection(8, fractions=2), torch.randn(2, 8)
        >>> y = connection.end(connection.advance(connection.begin(x), nn.Tanh()))
        >>> torch.allclose(y, x + x.tanh())
        True

    Source: Zhu, Huang, Zhou, Huang, Zeng, Wu, Min and Zhou, 2025, arXiv 2503.14125.
    """

    reads_parts = True

    def __init__(
        self,
        dim: int,
        *,
        fractions: int = 2,
        layer: int = 0,
        depth: int = 1,
        dynamic: bool = True,
        axis: int = -1,
        norm: Literal["layer", "rms"] = "layer",
    ) -> None:
        require_at_least("FractionalConnection", "fractions", fractions, 2, "For the stream as a whole use Residual.")
        super().__init__(dim, streams=fractions, layer=layer, depth=depth, axis=axis)
        if dim % fractions:
            raise UsageError(
                f"FractionalConnection: dim must be a multiple of fractions, got dim={dim} and fractions={fractions}. "
                "Change one of them."
            )
        self.width = dim // fractions
        self._add_parameters(self.width, torch.eye(fractions), dynamic, norm)

    def start_as_residual(self) -> None:
        """Read, keep and write each fraction in its own place; nothing follows the token."""
        self._start(torch.eye(self.streams))

    def spread(self, x: Tensor) -> Tensor:
        """Return `(..., dim)` as `(..., m, dim / m)`, contiguous."""
        return torch.unflatten(x, -1, (self.streams, self.width)).contiguous()

    def end(self, state: Tensor) -> Tensor:
        """Return the fractions side by side."""
        return self.to_axis(self.require_streams(state).flatten(-2))

    def combine(self, read: Tensor, state: Tensor) -> Tensor:
        """Return the weighted sums of the fractions side by side, `(..., dim)` with the channels at `axis`."""
        return self.to_axis(_product(read, state).to(state.dtype).flatten(-2))

    def update(self, coefficients: Coefficients, state: Tensor, out: Tensor) -> Tensor:
        """Return `mix @ state + write out`, each fraction of the output in its own place."""
        assert coefficients.mix is not None
        out = torch.unflatten(self.from_axis(out), -1, (self.streams, self.width))
        return (_product(coefficients.mix, state) + coefficients.write.unsqueeze(-1) * out).to(state.dtype)

    def extra_repr(self) -> str:
        """Say the width, the number of fractions and the options that are not the usual ones."""
        return f"dim={self.dim}, fractions={self.streams}" + ("" if self.dynamic else ", dynamic=False")
