"""Reading streams by weights that were handed on, on a CPU: the products and loops of reading by a token's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from levada.ops._loading import or_reference
from levada.ops.manifold.cpu import loops_for, read_by, read_by_backward
from levada.ops.manifold.handed import reference
from levada.ops.manifold.reference import Form

__all__ = ["read", "read_backward"]


@or_reference
def read(
    state: Tensor, handed: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read next, write and mix, and features and norms."""
    form = Form(*options)
    loops = loops_for(state, form, handed, projection, scale, bias)
    if loops is None:
        return reference.read_and_keep(state, handed, projection, scale, bias, *options)
    return read_by(loops, handed, state, projection, scale, bias, form)


@or_reference
def read_backward(
    by_x: Tensor, by_reads: Tensor | None, by_writes: Tensor, by_mix: Tensor, by_new: Tensor | None,
    state: Tensor, handed: Tensor, *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, handed weights, projection, scale and bias; see the reference."""
    projection, scale, bias, features, inverse, *options = others
    form, by = Form(*options), (by_x, by_reads, by_writes, by_mix, by_new)
    kept = projection, scale, bias, features, inverse
    loops = loops_for(state, form, handed, *kept, *by)
    if loops is None:
        return reference.read_backward(*by, state, handed, *others)
    by_state, by_handed, *by_parameters = read_by_backward(loops, handed, *by, state, *kept, form)
    assert by_handed is not None
    by_projection, by_scale, by_bias = by_parameters
    return by_state, by_handed, by_projection, by_scale, by_bias
