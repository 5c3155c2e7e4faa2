"""Reading streams by weights that they decide, by plain operations: what the kernels must compute."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from levada.ops._precision import full_precision
from levada.ops.sinkhorn import sinkhorn

__all__ = ["Form", "logits", "read"]


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


def logits(state: Tensor, projection: Tensor, epsilon: float) -> Tensor:
    """Return the projected features over their root mean square; the division follows the product."""
    with full_precision(state):
        features = state.flatten(-2).to(torch.promote_types(state.dtype, torch.float32))
        inverse = torch.rsqrt(features.square().mean(-1, keepdim=True) + epsilon)
        return torch.nn.functional.linear(features, projection.to(features.dtype)) * inverse


def read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, form: Form
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return what the branch reads, and the weights that read, write and mix."""
    n = state.shape[-2]
    found = logits(state, projection, form.norm_epsilon)
    sizes = [n, n, n * n] if form.mixes else [n, n]
    parts = zip(found.split(sizes, -1), scale.to(found.dtype).unbind(), bias.to(found.dtype).split(sizes), strict=True)
    reads, writes, *mixes = (part * factor + start for part, factor, start in parts)
    reads = torch.sigmoid(reads) + form.read_epsilon
    writes = 2 * torch.sigmoid(writes) + form.write_epsilon
    x = (reads.unsqueeze(-1) * state).sum(-2).to(state.dtype)
    if not mixes:
        return x, reads, writes, None
    square = mixes[0].unflatten(-1, (n, n))
    return x, reads, writes, sinkhorn(square.mT if form.transposed else square, form.iterations, epsilon=form.epsilon)
