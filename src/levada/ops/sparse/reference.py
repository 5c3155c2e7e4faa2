"""Reading streams that are scored, by plain operations: what the loops must compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levada.ops._precision import full_precision

__all__ = ["logits", "read", "read_and_keep", "read_backward"]


def read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, and the scores."""
    x, reads, scores, _, _ = read_and_keep(state, projection, scale, bias, epsilon)
    return x, reads, scores


def read_and_keep(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the same, and for the way back the logits, without scale and bias, and one over the norms, and the mean.

    The norms are the root of the variance and the root mean square.
    """
    found, norms = logits(state, projection, epsilon)
    routed = len(projection) - state.shape[-2]
    reads = torch.sigmoid(found[..., routed:] * scale.to(found.dtype) + bias.to(found.dtype))
    x = (reads.unsqueeze(-1) * state).sum(-2).to(state.dtype)
    return x, reads, torch.sigmoid(found[..., :routed]), found, norms


def read_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by state, projection, scale and bias, by operations that have derivatives themselves.

    Args:
        *arguments: in turn the gradients by what the branch read, by the weights that read (or None), by the scores,
            and by the state from elsewhere (or None); the four arguments of `read`, tokens first; logits and norms
            that were kept (both None to make them again, as derivatives of this need); the last argument.
    """
    by_x, by_reads, by_scores, by_new, state, projection, scale, bias, found, norms, epsilon = arguments
    if found is None or norms is None:
        found, norms = logits(state, projection, epsilon)
    full, n = found.dtype, state.shape[-2]
    routed, size = len(projection) - n, n * state.shape[-1]
    one_over, of_squares, mean = norms.unsqueeze(-1).unbind(-2)
    streams, weights, factor = state.flatten(-2).to(full), projection.to(full), scale.to(full)
    reads, scores = torch.sigmoid(found[..., routed:] * factor + bias.to(full)), torch.sigmoid(found[..., :routed])
    wide = by_x.to(full).unsqueeze(-2)
    of_reads = (wide * state).sum(-1)
    if by_reads is not None:
        of_reads = of_reads + by_reads
    by_logits, by_route = of_reads * reads * (1 - reads), by_scores * scores * (1 - scores)
    along, by_bias = by_logits * found[..., routed:], by_logits.sum(0)
    by_found = torch.cat([by_route * one_over, by_logits * factor * of_squares], -1)
    shrink = (by_route * found[..., :routed]).sum(-1, keepdim=True) * one_over.square() / size
    squares = along.sum(-1, keepdim=True) * factor * of_squares.square() / size
    by_route = by_found[..., :routed]
    with full_precision(state):
        by_mean = (by_route @ weights[:routed].sum(-1, keepdim=True)) / size
        by_state = by_found @ weights - (shrink + squares) * streams + shrink * mean - by_mean
        by_rows = by_found.mT @ streams
    by_sums = torch.cat([(by_route * mean).sum(0), by_bias.new_zeros(n)])
    by_state = by_state.view(state.shape) + reads.unsqueeze(-1) * wide
    by_state = by_state if by_new is None else by_state + by_new
    by_projection = by_rows - by_sums.unsqueeze(-1)
    return (
        by_state.to(state.dtype),
        by_projection.to(projection.dtype),
        along.sum().view(1).to(scale.dtype),
        by_bias.to(bias.dtype),
    )


def logits(state: Tensor, projection: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return what scores and reads are made of, and the norms: one product for both, whose division follows.

    Args:
        state: the streams.
        projection: rows for scores, and for what reads.
        epsilon: what is added to variance and mean square.
    """
    routed = len(projection) - state.shape[-2]
    with full_precision(state):
        features = state.flatten(-2).to(torch.promote_types(state.dtype, torch.float32))
        weights = projection.to(features.dtype)
        variance, mean = torch.var_mean(features, -1, correction=0, keepdim=True)
        found = torch.nn.functional.linear(features, weights)
        # The mean, which layernorm takes off, comes off after the product.
        route = found[..., :routed] - mean * weights[:routed].sum(-1)
        norms = torch.rsqrt(torch.cat([variance, variance + mean.square()], -1) + epsilon)
        found = torch.cat([route * norms[..., :1], found[..., routed:] * norms[..., 1:]], -1)
    return found, torch.cat([norms, mean], -1)
