"""Who gets a kernel, and who plain operations."""

from __future__ import annotations

import importlib.util
from typing import Final

import torch
from torch import Tensor

from levada.ops._define import is_observed, is_special

__all__ = ["TYPES", "has_kernels", "takes"]

TYPES: Final = {torch.float32, torch.float64}
"""Of tensors that loops on a CPU are compiled for."""
_FOUND = importlib.util.find_spec("numba") is not None  # asked once, as the compiler cannot ask


def takes(state: Tensor, *others: Tensor) -> bool:
    """Return whether there are loops on a CPU for tensors such as these.

    Args:
        state: the streams.
        *others: the parameters.
    """
    same = all(x.dtype == state.dtype and x.device == state.device for x in others)
    return _FOUND and same and state.device.type == "cpu" and state.dtype in TYPES


def has_kernels(state: Tensor, *others: Tensor) -> bool:
    """Return whether kernels may take these: what has rules for plain operations alone gets these.

    The compiler makes better kernels of the reference than an operation has that is without any.

    Args:
        state: the streams.
        *others: the parameters.
    """
    if not torch.compiler.is_compiling() and (is_observed() or is_special(state, *others)):
        return False
    return state.is_cuda or takes(state, *others)
