"""Reading streams by weights that were handed on, on a GPU: by the kernels of reading by a token's own weights.

Forward `(2 n + 1) dim` elements a token are moved, backward `(4 n + 2) dim`, as there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from levada.ops._device import as_float32
from levada.ops.manifold.handed import reference
from levada.ops.manifold.products.triton import project
from levada.ops.manifold.reference import Form
from levada.ops.manifold.triton import read_projected, read_projected_backward, takes

__all__ = ["read", "read_backward"]


def read(
    state: Tensor, handed: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read next, write and mix, and features and norms."""
    form = Form(*options)
    if not takes(state, form):
        return reference.read_and_keep(state, handed, projection, scale, bias, *options)
    state = state.contiguous()
    return read_projected(state, project(state, projection), scale, bias, form, as_float32(handed))


def read_backward(
    by_x: Tensor, by_reads: Tensor | None, by_writes: Tensor, by_mix: Tensor, by_new: Tensor | None,
    state: Tensor, handed: Tensor, *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, handed weights, projection, scale and bias."""
    projection, scale, bias, features, inverse, *options = others
    form = Form(*options)
    if not takes(state, form) or not state.numel():
        return reference.read_backward(by_x, by_reads, by_writes, by_mix, by_new, state, handed, *others)
    by_reads = torch.zeros_like(by_writes) if by_reads is None else by_reads
    kept, weights = (projection, scale, bias, features, inverse), as_float32(handed)
    found = read_projected_backward(by_x, by_reads, by_writes, by_mix, by_new, state, *kept, form, weights)
    by_state, by_handed, by_projection, by_scale, by_bias = found
    return by_state, by_handed.to(handed.dtype), by_projection, by_scale, by_bias
