"""Writing to streams on a CPU: by loops that Numba compiles; without it the reference runs."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from levada.ops._define import empty_like, import_kernels
from levada.ops._kernels import TYPES
from levada.ops.streams import reference

__all__ = ["write", "write_backward"]


def write(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> Tensor:
    """Return the new streams, contiguous."""
    loops = _loops(state, out, weights, mix)
    if loops is None:
        return reference.write(state, out, weights, mix)
    new = empty_like(state)
    loops.over_tokens(loops.write, [*_arrays(state, out, weights, mix), new], mix is not None)
    return new


def write_backward(
    cotangent: Tensor, state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients, contiguous."""
    loops = _loops(cotangent, state, out, weights, mix)
    if loops is None:
        return reference.write_backward(cotangent, state, out, weights, mix)
    given = _arrays(state, out, weights, mix)
    found = [empty_like(x) for x in given]
    loops.over_tokens(loops.write_backward, [cotangent.contiguous(), *given, *found], mix is not None)
    if mix is None:
        found[0], found[3] = state.new_empty(0), weights.new_empty(0)
    return found[0], found[1], found[2], found[3]


def _loops(*tensors: Tensor | None) -> ModuleType | None:
    """Return the loops if they take these: of one type that they are compiled for, and something to do."""
    given = [x for x in tensors if x is not None]
    types = {x.dtype for x in given}
    if len(types) > 1 or not types <= TYPES or not given[0].numel():
        return None
    return import_kernels("levada.ops.streams.loops", "numba")


def _arrays(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None) -> list[Tensor]:
    given = weights, weights.unsqueeze(-1) if mix is None else mix
    return [state.contiguous(), out.contiguous(), *map(_in_place, given)]


def _in_place(x: Tensor) -> Tensor:
    """Return weights that loops can read: what all tokens have in one place is copied once, and read there again."""
    if x.stride(0) != 0:
        return x.contiguous()
    # It may be a parameter's own memory, which would never again be given up for a shard once NumPy has seen it.
    return x[:1].clone(memory_format=torch.contiguous_format).expand(x.shape)
