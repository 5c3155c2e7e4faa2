"""Reading streams by weights of all tokens on a CPU: by loops that Numba compiles; else the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from levada.ops._cpu import added, array_of, loops_for
from levada.ops._define import empty_like
from levada.ops._loading import or_reference
from levada.ops.hyper.static import reference

__all__ = ["read", "read_backward"]

_LOOPS = "levada.ops.hyper.static.loops"


@or_reference
def read(state: Tensor, weights: Tensor) -> tuple[Tensor]:
    """Return what the branch reads."""
    loops = loops_for(_LOOPS, state, weights)
    if loops is None:
        return reference.read_and_keep(state, weights)
    tokens, _, width = state.shape
    x = state.new_empty(tokens, width)
    loops.over_tokens(loops.read, [state.contiguous(), x], array_of(weights))
    return (x,)


@or_reference
def read_backward(by_x: Tensor, by_new: Tensor | None, state: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by state and weights; see the reference."""
    loops = loops_for(_LOOPS, state, weights)
    if loops is None:
        return reference.read_backward(by_x, by_new, state, weights)
    by_state, adds = empty_like(state), by_new is not None
    given = [x.contiguous() for x in (by_x, state if by_new is None else by_new, state)]
    sums = loops.over_tokens(loops.read_backward, [*given, by_state], array_of(weights), adds)
    return by_state, torch.from_numpy(added(sums, weights.dtype))
