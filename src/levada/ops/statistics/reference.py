"""Statistics of many tensors, by plain operations: what the kernels must compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["ALL", "COLUMNS", "SQUARES", "ZEROS", "statistics", "wide_type"]

COLUMNS: Final = ("sum", "squares", "largest", "zeros", "nan", "infinite")
"""Sum, sum of squares, largest magnitude of what is a number, and how many elements are zero, NaN or infinite."""

SQUARES: Final = 1
ZEROS: Final = 2
ALL: Final = 3
"""What of a tensor is wanted: its sum of squares, its zeros, or everything."""


def statistics(tensors: Sequence[Tensor]) -> Tensor:
    """Return a row for each tensor, in float64 (in float32 where the device has nothing wider)."""
    if not tensors:
        return torch.empty(0, len(COLUMNS), dtype=torch.float64)
    return torch.stack([_row(tensor) for tensor in tensors])


def wide_type(device: torch.device) -> torch.dtype:
    """Return the type in which sums are taken on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def _row(tensor: Tensor) -> Tensor:
    x = tensor.detach().flatten().to(wide_type(tensor.device))
    nan, size = x.isnan(), x.abs()
    largest = torch.where(nan, 0.0, size).amax() if len(x) else x.sum()
    counts = (one.sum(dtype=x.dtype) for one in (x == 0, nan, size.isinf()))
    return torch.stack([x.sum(), x.square().sum(), largest, *counts])
