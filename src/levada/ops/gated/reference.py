"""Reading streams through a gate for each element, by plain operations: what the kernels must compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from levada.ops._precision import full_precision

__all__ = ["read", "read_and_keep", "read_backward", "stacked"]


def read(
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return what the branch reads, and the weights that write; these are `(..., 0)` without a projection."""
    x, writes, _, _ = read_and_keep(state, gain, down, up, projection, epsilon)
    return x, writes


def read_and_keep(
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same, and for the way back what was projected, and one over the norms of the streams."""
    full, n, rank = torch.promote_types(state.dtype, torch.float32), state.shape[-2], len(down)
    inverse = torch.rsqrt(state.to(full).square().mean(-1) + epsilon)
    features = _features(state, gain, inverse)
    with full_precision(state):
        found = functional.linear(features.flatten(-2), stacked(down, projection).to(full))
        gate = _gate(functional.silu(found[..., :rank] / n), up, state)
    x = (gate * features).sum(-2) / n
    return x.to(state.dtype), 2 * torch.sigmoid(found[..., rank:] / n), found, inverse


def read_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by state, gain, down, up and projection, by operations that have derivatives themselves.

    The last is empty without a projection.

    Args:
        *arguments: in turn the gradients by what the branch read, by the weights that write, and by the state from
            elsewhere (or None); the arguments of `read` but the last, tokens first; what was projected and the norms
            (both None to make them again, as derivatives of this need); the last argument.
    """
    by_x, by_writes, by_new, state, gain, down, up, projection, found, inverse, epsilon = arguments
    if found is None or inverse is None:
        _, _, found, inverse = read_and_keep(state, gain, down, up, projection, epsilon)
    full, n, rank = found.dtype, state.shape[-2], len(down)
    features, weights, streams = _features(state, gain, inverse), stacked(down, projection).to(full), state.to(full)
    share = by_x.to(full).unsqueeze(-2) / n
    logits = found[..., :rank] / n
    sigma, narrow = torch.sigmoid(logits), functional.silu(logits)
    writes = torch.sigmoid(found[..., rank:] / n)
    with full_precision(state):
        gate = _gate(narrow, up, state)
        by_gate = (share * features * gate * (1 - gate)).flatten(-2)
        by_up = by_gate.mT @ narrow
        by_narrow = by_gate @ up.to(full)
        by_found = torch.cat(
            [by_narrow * sigma * (1 + logits * (1 - sigma)), 2 * by_writes * writes * (1 - writes)], -1
        ) / n  # fmt: skip
        by_features = share * gate + (by_found @ weights).view(state.shape)
        by_weights = by_found.mT @ features.flatten(-2)
    inverse = inverse.unsqueeze(-1)
    by_gain = (by_features * streams * inverse).sum(0)
    back = by_features * gain.to(full)
    by_state = inverse * back - inverse.pow(3) * (back * streams).mean(-1, keepdim=True) * streams
    if by_new is not None:
        by_state = by_state + by_new
    by_projection = gain.new_empty(0) if projection is None else by_weights[rank:].to(projection.dtype, copy=True)
    return (
        by_state.to(state.dtype),
        by_gain.to(gain.dtype),
        by_weights[:rank].to(down.dtype),
        by_up.to(up.dtype),
        by_projection,
    )


def stacked(down: Tensor, projection: Tensor | None) -> Tensor:
    """Return both matrices as one, as one product with the streams is cheaper than two.

    Args:
        down: `(rank, n dim)`.
        projection: `(n, n dim)`, or None.
    """
    return down if projection is None else torch.cat([down, projection.to(down.dtype)])


def _features(state: Tensor, gain: Tensor, inverse: Tensor) -> Tensor:
    return inverse.unsqueeze(-1) * gain.to(inverse.dtype) * state


def _gate(narrow: Tensor, up: Tensor, state: Tensor) -> Tensor:
    return torch.sigmoid(functional.linear(narrow, up.to(narrow.dtype))).view(state.shape)
