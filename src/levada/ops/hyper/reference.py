"""Reading the streams of hyper-connections, by plain operations: what the kernels must compute."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from levada.ops._precision import full_precision

__all__ = ["Parameters", "by_rows", "read", "read_and_keep", "read_backward", "stacked"]


class Parameters(NamedTuple):
    """What a layer has learned.

    Attributes:
        read: weights that read for all tokens, `(n,)`.
        mix: weights that mix for all tokens, `(n, n)`, with rows for new streams.
        write: weights that write for all tokens, `(n,)`.
        projection: rows for what reads, what mixes and what writes, `(n + 2, dim)`.
        mix_scale: of what a token adds to the weights that read and mix, `(1,)`.
        write_scale: of what it adds to those that write, `(1,)`.
        gain: of the norm of each stream, `(dim,)`.
        shift: likewise, where the mean is taken out; else None.
    """

    read: Tensor
    mix: Tensor
    write: Tensor
    projection: Tensor
    mix_scale: Tensor
    write_scale: Tensor
    gain: Tensor
    shift: Tensor | None


def read(state: Tensor, own: Parameters, epsilon: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, and the weights that read, mix and write."""
    return read_and_keep(state, *own, epsilon)[:4]


def read_and_keep(state: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the same, and for the way back the projected features, and one over the size and the mean of each stream.

    Args:
        state: the streams, `(..., n, dim)`.
        *arguments: the `Parameters`, and epsilon.
    """
    *given, epsilon = arguments
    own = Parameters(*given)
    streams = state.to(torch.promote_types(state.dtype, torch.float32))
    full = streams.dtype
    centred, inverse, mean = _normalised(streams, own, epsilon)
    weights, offset = stacked(own, full)
    with full_precision(state):
        features = functional.linear(centred * inverse, weights)
    said = torch.tanh(features + offset)
    mix_scale, write_scale = own.mix_scale.to(full), own.write_scale.to(full)
    reads = own.read.to(full) + mix_scale * said[..., 0]
    mix = own.mix.to(full) + mix_scale * said[..., 1:-1].mT
    writes = own.write.to(full) + write_scale * said[..., -1]
    return _sum(state, reads), reads, mix, writes, features, torch.cat([inverse, mean], -1)


def read_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients by state and `Parameters`, by operations that have derivatives themselves.

    The last is empty without a shift.

    Args:
        *arguments: in turn the gradients by what the branch read, by the weights that read (or None), mix and write,
            and by the state from elsewhere (or None); the state, tokens first; the `Parameters`; features and norms
            (features None to make them again, as derivatives of this need; norms are made anyway); epsilon.
    """
    by_x, by_reads, by_mix, by_writes, by_new, state, *given, features, _, epsilon = arguments
    own, streams = Parameters(*given), state.to(torch.promote_types(state.dtype, torch.float32))
    full = streams.dtype
    by_x = by_x.to(full)
    of_reads = (by_x.unsqueeze(-2) * streams).sum(-1)
    if by_reads is not None:
        of_reads = of_reads + by_reads
    weights, offset = stacked(own, full)
    centred, inverse, _ = _normalised(streams, own, epsilon)
    with full_precision(state):
        if features is None:
            features = functional.linear(centred * inverse, weights)
        said = torch.tanh(features + offset)
        mix_scale, write_scale = own.mix_scale.to(full), own.write_scale.to(full)
        by_said = torch.cat([of_reads.unsqueeze(-1), by_mix.mT, by_writes.unsqueeze(-1)], -1)
        scales = torch.cat([mix_scale.expand(said.shape[-1] - 1), write_scale])
        by_found = by_said * scales * (1 - said.square())
        by_product = by_found * inverse
        by_state = by_product @ weights
        by_weights = by_product.flatten(0, 1).mT @ centred.flatten(0, 1)
        by_offset = by_found.sum((0, 1))
        along = (by_found * features).sum(-1, keepdim=True) / state.shape[-1]
        reads = own.read.to(full) + mix_scale * said[..., 0]
        by_state = by_state - inverse.square() * along * centred + reads.unsqueeze(-1) * by_x.unsqueeze(-2)
    by_state = by_state if by_new is None else by_state + by_new
    spoken = by_said * said
    by_projection, by_gain, by_shift = by_rows(own, by_weights, by_offset)
    by_scales = spoken[..., :-1].sum().view(1), spoken[..., -1].sum().view(1)
    found = of_reads.sum(0), by_mix.sum(0), by_writes.sum(0), by_projection, *by_scales, by_gain, by_shift
    return by_state.to(state.dtype), *(y if x is None else y.to(x.dtype) for x, y in zip(own, found, strict=True))


def by_rows(own: Parameters, by_weights: Tensor, by_offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by projection, gain and shift; the last is empty without one.

    Args:
        own: the parameters.
        by_weights: gradient by what `stacked` returned first.
        by_offset: likewise, second.
    """
    rows, gain = own.projection.to(by_weights.dtype), own.gain.to(by_weights.dtype)
    if own.shift is None:
        return by_weights * gain, (by_weights * rows).sum(0), by_weights.new_empty(0)
    by_weights = by_weights - by_weights.mean(-1, keepdim=True)
    by_projection = by_weights * gain + by_offset.unsqueeze(-1) * own.shift.to(by_weights.dtype)
    return by_projection, (by_weights * rows).sum(0), (by_offset.unsqueeze(-1) * rows).sum(0)


def stacked(own: Parameters, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what normalised streams are multiplied by, `(n + 2, dim)`, and what is added then, `(n + 2,)`.

    Where a norm takes the mean out the rows sum to zero, so that the product itself takes it out.

    Args:
        own: the parameters.
        dtype: of the results.
    """
    rows = own.projection.to(dtype)
    weights = rows * own.gain.to(dtype)
    if own.shift is None:
        return weights, rows.new_zeros(len(rows))
    return weights - weights.mean(-1, keepdim=True), (rows * own.shift.to(dtype)).sum(-1)


def _normalised(streams: Tensor, own: Parameters, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the streams less their means, one over their sizes, and the means, which are zero where they stay."""
    mean = streams.mean(-1, keepdim=True)
    if own.shift is None:
        mean = torch.zeros_like(mean)
    centred = streams - mean
    return centred, torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon), mean


def _sum(state: Tensor, reads: Tensor) -> Tensor:
    return (reads.unsqueeze(-1) * state).sum(-2).to(state.dtype)
