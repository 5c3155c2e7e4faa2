"""Reading streams that are scored on a CPU: products of PyTorch's, and loops that Numba compiles for all the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from levada.ops._cpu import added, blocks_of, loops_for, number_of
from levada.ops._define import empty_like
from levada.ops._loading import or_reference
from levada.ops._precision import full_precision
from levada.ops._products import add_product, times_transposed
from levada.ops.sparse import reference

__all__ = ["read", "read_backward"]

_LOOPS = "levada.ops.sparse.loops"


@or_reference
def read(
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, the scores, and logits and norms for the way back."""
    loops = loops_for(_LOOPS, state, projection, scale, bias)
    if loops is None:
        return reference.read_and_keep(state, projection, scale, bias, epsilon)
    tokens, n, width = state.shape
    state, rows = state.contiguous(), len(projection)
    shapes = [(width,), (n,), (rows - n,), (rows,), (3,)]
    x, reads, scores, found, norms = (state.new_empty(tokens, *shape) for shape in shapes)
    sums, one = projection[: rows - n].sum(-1), number_of(state.dtype)
    own = [sums, scale.contiguous(), bias.contiguous()]
    with full_precision(state):
        for part in blocks_of(state):
            some, products = part(state), part(found)
            products.copy_(times_transposed(some.view(len(some), -1), projection))
            tensors = [some, *map(part, (x, reads, scores)), products, part(norms), *own]
            loops.over_addresses(loops.read_at, tensors, n, width, rows, one, type(one)(epsilon))
    return x, reads, scores, found, norms


@or_reference
def read_backward(
    by_x: Tensor, by_reads: Tensor | None, by_scores: Tensor, by_new: Tensor | None,
    state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, found: Tensor, norms: Tensor, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, projection, scale and bias; see the reference."""
    given = projection, scale, bias, found, norms
    loops = loops_for(_LOOPS, state, *given, by_x, by_reads, by_scores, by_new)
    if loops is None:
        return reference.read_backward(by_x, by_reads, by_scores, by_new, state, *given, epsilon)
    _, n, width = state.shape
    rows, one = len(projection), number_of(state.dtype)
    by_reads = torch.zeros(len(state), n, dtype=state.dtype) if by_reads is None else by_reads
    arrived = by_x, by_reads, by_scores, state if by_new is None else by_new, state, found, norms
    came = [y.contiguous() for y in arrived]
    by_state, by_found, by_projection = empty_like(state), empty_like(found), torch.zeros_like(projection)
    own, sums = [projection[: rows - n].sum(-1), scale.contiguous(), bias.contiguous()], []
    with full_precision(state):
        for part in blocks_of(state):
            some, back = part(by_state), part(by_found)
            tensors = [some, *map(part, came), back, *own]
            sums += loops.over_addresses(loops.read_backward_at, tensors, n, width, rows, one, by_new is not None)
            flat = some.view(len(some), -1)
            add_product(flat, back, projection)
            add_product(by_projection, back.t(), part(came[4]).view(len(some), -1))
    total = torch.from_numpy(added(sums, state.dtype))
    by_projection[: rows - n] -= total[: rows - n].unsqueeze(-1)
    return by_state, by_projection, total[rows : rows + 1].clone(), total[rows - n : rows].clone()
