"""A residual connection and the norm behind it on a CPU: by loops that Numba compiles; else the reference."""

from __future__ import annotations

import operator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._kernels import TYPES
from levada.ops._loading import import_kernels, or_reference
from levada.ops.residual_norm import reference

__all__ = ["residual_norm", "residual_norm_backward", "takes"]

_TYPE = operator.attrgetter("dtype")


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
    width = state.shape[-1]
    given = state.contiguous(), out.contiguous(), new, normed, _row(weight, state, 1.0), _row(bias, state, 0.0)
    options = width, centred, _kind(state)(eps)
    loops.over_table(loops.residual_norm, given, state.numel() // width, *options, work=state.numel())
    return new, normed


@or_reference
def residual_norm_backward(
    by_new: Tensor, by_normed: Tensor, new: Tensor, weight: Tensor | None, centred: bool, eps: float, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by the sum, contiguous, and by weight and bias: empty where there are none."""
    loops = _loops(new, by_new, by_normed, weight)
    if loops is None:
        return reference.residual_norm_backward(by_new, by_normed, new, weight, centred, eps, shifted)
    by_sum, width = empty_like(new), new.shape[-1]
    given = by_new.contiguous(), by_normed.contiguous(), new.contiguous(), by_sum, _row(weight, new, 1.0)
    options = width, centred, _kind(new)(eps)
    sums = loops.over_table(loops.residual_norm_backward, given, new.numel() // width, *options, work=new.numel())
    by_weight, by_bias = (torch.from_numpy(sum(parts[1:], parts[0])) for parts in zip(*sums, strict=True))
    return by_sum, new.new_empty(0) if weight is None else by_weight, by_bias if shifted else new.new_empty(0)


def takes(*tensors: Tensor | None) -> bool:
    """Return whether there are loops for these."""
    return _loops(*tensors) is not None


def _loops(*tensors: Tensor | None) -> ModuleType | None:
    """Return the loops if they take these: of one type that they are compiled for, and something to do."""
    given = [x for x in tensors if x is not None]
    types = {*map(_TYPE, given)}
    if len(types) > 1 or not types <= TYPES or not given[0].numel():
        return None
    return import_kernels("levada.ops.residual_norm.loops", "numba")


def _row(x: Tensor | None, like: Tensor, missing: float) -> Tensor:
    return like.new_full((like.shape[-1],), missing) if x is None else x.contiguous()


def _kind(x: Tensor) -> Any:
    return np.float64 if x.dtype == torch.float64 else np.float32
