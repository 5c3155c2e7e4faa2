"""Reading streams by weights that they decide, by plain operations: what the kernels must compute."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from levada.ops._precision import full_precision
from levada.ops.sinkhorn.reference import sinkhorn, sinkhorn_backward

__all__ = ["Form", "read", "read_and_keep", "read_backward"]


class Form(NamedTuple):
    """What the connections differ in that read streams in this way.

    Attributes:
        mixes: whether there are logits of a matrix that mixes the streams, made doubly stochastic.
        iterations: of the Sinkhorn normalisation.
        epsilon: in its sums.
        read_epsilon: added to the weights that read.
        write_epsilon: added to the weights that write.
        norm_epsilon: added to the mean square of the features.
        transposed: whether the logits of the matrix are those of its transpose.
    """

    mixes: bool = True
    iterations: int = 20
    epsilon: float = 0.0
    read_epsilon: float = 0.0
    write_epsilon: float = 0.0
    norm_epsilon: float = 1e-6
    transposed: bool = False


def read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return what the branch reads, and the weights that read, write and mix."""
    features, _ = _features(state, projection, form.norm_epsilon)
    return _read(state, features, scale, bias, form)


def read_and_keep(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the same, and for the way back the projected features, divided by the norms, and one over the norms.

    Where nothing is mixed the weights that would are empty, `(..., 0, n)`.
    """
    form = Form(*options)
    features, inverse = _features(state, projection, form.norm_epsilon)
    x, reads, writes, mix = _read(state, features, scale, bias, form)
    if mix is None:
        mix = writes.new_empty(*writes.shape[:-1], 0, writes.shape[-1])
    return x, reads, writes, mix.contiguous(), features, inverse


def read_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by state, projection, scale and bias, by operations that have derivatives themselves.

    Args:
        *arguments: in turn the gradients by what the branch read, by the weights that read (or None), write and mix,
            and by the state from elsewhere (or None); the four arguments of `read`, tokens first; features and norms
            that were kept (both None to make them again, as derivatives of this need); the form.
    """
    by_x, by_reads, by_writes, by_mix, by_new, state, projection, scale, bias, features, inverse, *options = arguments
    form = Form(*options)
    n = state.shape[-2]
    if features is None or inverse is None:
        features, inverse = _features(state, projection, form.norm_epsilon)
    full = features.dtype
    sizes = _sizes(n, form)
    factors = torch.cat([x.expand(size) for x, size in zip(torch.split(scale.to(full), 1), sizes, strict=True)])
    reads, writes, *mixes = torch.split(features * factors + bias.to(full), sizes, -1)
    reads, writes = torch.sigmoid(reads), torch.sigmoid(writes)
    streams, by_x = state.to(full), by_x.to(full)
    of_reads = (by_x.unsqueeze(-2) * streams).sum(-1)
    if by_reads is not None:
        of_reads = of_reads + by_reads
    parts = [of_reads * reads * (1 - reads), 2 * by_writes * writes * (1 - writes)]
    if mixes:
        square = torch.unflatten(mixes[0], -1, (n, n))
        square = sinkhorn_backward(square.mT if form.transposed else square, by_mix, form.iterations, form.epsilon)
        parts.append((square.mT if form.transposed else square).flatten(-2))
    gradient = torch.cat(parts, -1)
    along = gradient * features
    inverse = inverse.unsqueeze(-1)
    shrink = (along * factors).sum(-1, keepdim=True) * inverse.square() / (n * state.shape[-1])
    by_found = gradient * factors * inverse
    with full_precision(state):
        by_state = (by_found @ projection.to(full)).view(state.shape) - shrink.unsqueeze(-1) * streams
        by_projection = by_found.mT @ streams.flatten(-2)
    by_state = by_state + (reads + form.read_epsilon).unsqueeze(-1) * by_x.unsqueeze(-2)
    if by_new is not None:
        by_state = by_state + by_new
    by_scale = torch.stack([part.sum() for part in torch.split(along, sizes, -1)])
    by_bias = gradient.sum(0)
    return (
        by_state.to(state.dtype),
        by_projection.to(projection.dtype),
        by_scale.to(scale.dtype),
        by_bias.to(bias.dtype),
    )


def _features(state: Tensor, projection: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the projected features over their root mean square, and one over it; the division follows the product."""
    with full_precision(state):
        features = state.flatten(-2).to(torch.promote_types(state.dtype, torch.float32))
        inverse = torch.rsqrt(features.square().mean(-1) + epsilon)
        found = torch.nn.functional.linear(features, projection.to(features.dtype)) * inverse.unsqueeze(-1)
    return found, inverse


def _read(
    state: Tensor, found: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    n = state.shape[-2]
    sizes = _sizes(n, form)
    scales, biases = scale.to(found.dtype).unbind(), torch.split(bias.to(found.dtype), sizes)
    parts = zip(torch.split(found, sizes, -1), scales, biases, strict=True)
    reads, writes, *mixes = (part * factor + start for part, factor, start in parts)
    reads = torch.sigmoid(reads) + form.read_epsilon
    writes = 2 * torch.sigmoid(writes) + form.write_epsilon
    x = (reads.unsqueeze(-1) * state).sum(-2).to(state.dtype)
    if not mixes:
        return x, reads, writes, None
    square = torch.unflatten(mixes[0], -1, (n, n))
    return x, reads, writes, sinkhorn(square.mT if form.transposed else square, form.iterations, form.epsilon)


def _sizes(n: int, form: Form) -> list[int]:
    return [n, n, n * n] if form.mixes else [n, n]
