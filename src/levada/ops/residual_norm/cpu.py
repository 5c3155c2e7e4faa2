"""A residual connection and the norm behind it on a CPU: by loops that Numba compiles; else the reference."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._kernels import TYPES
from levada.ops._loading import import_kernels, or_reference
from levada.ops.residual_norm import reference

__all__ = ["residual_norm", "residual_norm_backward"]


@or_reference
def residual_norm(
    state: Tensor, out: Tensor, weight: Tensor | None, bias: Tensor | None, centred: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the sum and what it is normalised, contiguous."""
    loops = _loops(state, out, weight, bias)
    if loops is None:
        return reference.residual_norm(state, out, weight, bias, centred, eps)
    new = empty_like(state)
    normed = torch.empty_like(new)
    rows = [state.contiguous(), out.contiguous(), new, normed]
    one, zero = _row(weight, state, 1.0), _row(bias, state, 0.0)
    loops.over_tokens(loops.residual_norm, rows, one, zero, centred, one.dtype.type(eps))
    return new, normed


@or_reference
def residual_norm_backward(
    by_new: Tensor, by_normed: Tensor, new: Tensor, weight: Tensor | None, centred: bool, eps: float, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by the sum, contiguous, and by weight and bias: empty where there are none."""
    loops = _loops(new, by_new, by_normed, weight)
    if loops is None:
        return reference.residual_norm_backward(by_new, by_normed, new, weight, centred, eps, shifted)
    by_sum = empty_like(new)
    rows = [by_new.contiguous(), by_normed.contiguous(), new.contiguous(), by_sum]
    one = _row(weight, new, 1.0)
    sums = loops.over_tokens(loops.residual_norm_backward, rows, one, centred, one.dtype.type(eps), shifted)
    by_weight, by_bias = (torch.from_numpy(sum(found)).to(new.dtype) for found in zip(*sums, strict=True))
    nothing = new.new_empty(0)
    return by_sum, nothing if weight is None else by_weight, by_bias if shifted else nothing.clone()


def _loops(*tensors: Tensor | None) -> ModuleType | None:
    """Return the loops if they take these: of one type that they are compiled for, and something to do."""
    given = [x for x in tensors if x is not None]
    types = {x.dtype for x in given}
    if len(types) > 1 or not types <= TYPES or not given[0].numel():
        return None
    return import_kernels("levada.ops.residual_norm.loops", "numba")


def _row(x: Tensor | None, like: Tensor, missing: float) -> Any:
    # A copy: memory that NumPy has seen cannot be resized any more, as FSDP does with that of parameters.
    return (like.new_full((like.shape[-1],), missing) if x is None else x.detach().clone()).numpy()
