"""Sinkhorn normalisation on a CPU: by loops that Numba compiles; without it the reference runs."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._loading import import_kernels, or_reference
from levada.ops.sinkhorn import reference

__all__ = ["sinkhorn", "sinkhorn_backward", "takes"]

_TYPES = {torch.float32: np.float32, torch.float64: np.float64}
_FOUND = importlib.util.find_spec("numba") is not None  # asked once, as the compiler cannot ask


def takes(logits: Tensor, iterations: int, epsilon: float) -> bool:
    """Return whether there are loops for these."""
    return bool(_FOUND and logits.device.type == "cpu" and _work(logits, iterations, epsilon))


def _work(logits: Tensor, iterations: int, epsilon: float) -> Any:
    """Return the type to compute in: past so many iterations an entry that underflowed could matter."""
    for dtype in (logits.dtype, torch.float64) if logits.dtype in _TYPES else ():
        if epsilon or iterations <= reference.steps_at_once(logits.shape[-1], dtype):
            return _TYPES[dtype]
    return None


@or_reference
def sinkhorn(logits: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the matrices, contiguous."""
    loops = _loops(logits, iterations, epsilon)
    if loops is None:
        return reference.normalise(logits, iterations, epsilon)
    mix = empty_like(logits)
    loops.over_tokens(loops.sinkhorn, [logits.contiguous(), mix], *_options(logits, iterations, epsilon))
    return mix


@or_reference
def sinkhorn_backward(logits: Tensor, cotangent: Tensor, iterations: int, epsilon: float) -> Tensor:
    """Return the gradient by the logits, contiguous."""
    loops = _loops(logits, iterations, epsilon)
    if loops is None:
        return reference.backward(logits, cotangent, iterations, epsilon)
    found = empty_like(logits)
    tensors = [logits.contiguous(), cotangent.contiguous(), found]
    loops.over_tokens(loops.sinkhorn_backward, tensors, *_options(logits, iterations, epsilon))
    return found


def _options(logits: Tensor, iterations: int, epsilon: float) -> tuple[int, object]:
    return iterations, np.array([epsilon], _work(logits, iterations, epsilon))


def _loops(logits: Tensor, iterations: int, epsilon: float) -> ModuleType | None:
    if not takes(logits, iterations, epsilon) or not logits.numel():
        return None
    return import_kernels("levada.ops.sinkhorn.loops", "numba")
