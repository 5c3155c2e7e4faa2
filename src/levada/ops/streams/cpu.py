"""Writing to streams on a CPU: by loops that Numba compiles; without it the reference runs."""

from __future__ import annotations

import torch
from torch import Tensor

from levada.ops._cpu import loops_for, number_of
from levada.ops._define import empty_like
from levada.ops._loading import or_reference
from levada.ops.streams import reference

__all__ = ["options_of", "write", "write_backward"]

_LOOPS = "levada.ops.streams.loops"


@or_reference
def write(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> Tensor:
    """Return the new streams, contiguous."""
    loops = loops_for(_LOOPS, state, out, weights, mix)
    if loops is None:
        return reference.write(state, out, weights, mix)
    given, new = _arrays(state, out, weights, mix), empty_like(state)
    if _follow_tokens(given):
        loops.over_addresses(loops.write_at, [*given, new], *options_of(state, mix))
    else:
        loops.over_tokens(loops.write, [*given, new], mix is not None)
    return new


@or_reference
def write_backward(
    cotangent: Tensor, state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients, contiguous."""
    loops = loops_for(_LOOPS, cotangent, state, out, weights, mix)
    if loops is None:
        return reference.write_backward(cotangent, state, out, weights, mix)
    given = _arrays(state, out, weights, mix)
    found = [empty_like(x) for x in given]
    tensors = [cotangent.contiguous(), *given, *found]
    if _follow_tokens(given):
        loops.over_addresses(loops.write_backward_at, tensors, *options_of(state, mix))
    else:
        loops.over_tokens(loops.write_backward, tensors, mix is not None)
    if mix is None:
        found[0], found[3] = state.new_empty(0), weights.new_empty(0)
    return found[0], found[1], found[2], found[3]


def options_of(state: Tensor, mix: Tensor | None) -> tuple[object, ...]:
    """Return what the loops are given behind the addresses.

    Args:
        state: the streams.
        mix: as for `write`.
    """
    return *state.shape[1:], mix is not None, number_of(state.dtype)


def _follow_tokens(given: list[Tensor]) -> bool:
    return given[2].stride(0) != 0 and given[3].stride(0) != 0


def _arrays(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> list[Tensor]:
    given = weights, weights.unsqueeze(-1) if mix is None else mix
    return [state.contiguous(), out.contiguous(), *map(_in_place, given)]


def _in_place(x: Tensor) -> Tensor:
    """Return weights that loops can read: what all tokens have in one place is copied once, and read there again."""
    if x.stride(0) != 0:
        return x.contiguous()
    # It may be a parameter's own memory, which would never again be given up for a shard once NumPy has seen it.
    return x[:1].clone(memory_format=torch.contiguous_format).expand(x.shape)
