"""Reading streams through gates on a CPU: products and sigmoids of PyTorch's, and loops by Numba for all the rest.

Some tokens at a time, so that their normalised streams and gates stay in the cache: neither is kept for the way back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from levada.ops._cpu import added, array_of, blocks_of, loops_for, rows_of
from levada.ops._define import empty_like
from levada.ops._loading import or_reference
from levada.ops._precision import full_precision
from levada.ops._products import add_product, product, product_into
from levada.ops.gated import reference

__all__ = ["read", "read_backward"]

_LOOPS = "levada.ops.gated.loops"


@or_reference
def read(
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that write, and what was projected and norms for the way back."""
    loops = loops_for(_LOOPS, state, gain, down, up, projection)
    if loops is None:
        return reference.read_and_keep(state, gain, down, up, projection, epsilon)
    tokens, n, width = state.shape
    rank, size = len(down), n * width
    state, factors, weights = state.contiguous(), array_of(gain), reference.stacked(down, projection)
    x, inverse = state.new_empty(tokens, width), state.new_empty(tokens, n)
    found = state.new_empty(tokens, len(weights))
    features = state.new_empty(rows_of(state), n, width)
    with full_precision(state):
        for part in blocks_of(state):
            streams, logits = part(state), part(found)
            several = len(streams)
            some = features[:several]
            loops.over_tokens(loops.normalise, [streams, part(inverse), some], factors, epsilon, False)
            product_into(logits, some.view(several, size), weights.t())
            gates = product(functional.silu(logits[:, :rank] / n), up.t()).sigmoid_()
            loops.over_tokens(loops.average, [gates.view(several, n, width), some, part(x)])
    return x, 2 * torch.sigmoid(found[:, rank:] / n), found, inverse


@or_reference
def read_backward(
    by_x: Tensor, by_writes: Tensor, by_new: Tensor | None,
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None,
    found: Tensor, inverse: Tensor, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, gain, down, up and projection; see the reference."""
    loops = loops_for(_LOOPS, state, gain, down, up, projection)
    if loops is None:
        parameters = gain, down, up, projection
        return reference.read_backward(by_x, by_writes, by_new, state, *parameters, found, inverse, epsilon)
    _, n, width = state.shape
    rank, size, weights = len(down), n * width, reference.stacked(down, projection)
    state, factors, by_x = state.contiguous(), array_of(gain), by_x.contiguous()
    arrives = state if by_new is None else by_new.contiguous()
    by_state, by_found = empty_like(state), torch.empty_like(found)
    features = state.new_empty(rows_of(state), n, width)
    logits, writes = found[:, :rank] / n, torch.sigmoid(found[:, rank:] / n)
    narrow, sigma = functional.silu(logits), torch.sigmoid(logits)
    by_found[:, rank:] = by_writes * writes * (1 - writes) * (2 / n)
    slope = sigma * (1 + logits * (1 - sigma)) / n
    by_up, by_weights, sums = torch.zeros_like(up), torch.zeros_like(weights), []
    with full_precision(state):
        for part in blocks_of(state):
            tensors = [*map(part, (arrives, state, inverse, by_state))]
            _, streams, norms, by_streams = tensors
            several = len(streams)
            some, gates = features[:several], product(part(narrow), up.t()).sigmoid_()
            loops.over_tokens(loops.normalise, [streams, norms, some], factors, epsilon, True)
            loops.over_tokens(loops.by_gates, [part(by_x), gates.view(several, n, width), some, by_streams])
            add_product(by_up, gates.t(), part(narrow))
            back = part(by_found)
            torch.mul(product(gates, up), part(slope), out=back[:, :rank])
            add_product(by_streams.view(several, size), back, weights)
            add_product(by_weights, back.t(), some.view(several, size))
            sums += loops.over_tokens(loops.by_streams, tensors, factors, by_new is not None)
    by_gain = torch.from_numpy(added(sums, gain.dtype))
    by_projection = gain.new_empty(0) if projection is None else by_weights[rank:].clone()
    return by_state, by_gain, by_weights[:rank], by_up, by_projection
