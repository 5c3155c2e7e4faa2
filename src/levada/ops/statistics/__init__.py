"""Statistics of many tensors in one call, which reads each of them once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.ops.statistics.operation import STATISTICS
from levada.ops.statistics.reference import COLUMNS

__all__ = ["COLUMNS", "tensor_statistics"]


def tensor_statistics(tensors: Sequence[Tensor]) -> Tensor:
    r"""Return sums and counts over the elements of each tensor.

    A row holds the columns `levada.ops.statistics.COLUMNS`: the sum $\sum x$, the sum of squares $\sum x^2$, the
    largest magnitude $\max |x|$ of what is a number, and how many elements are zero, NaN and infinite. Of an empty
    tensor all are zero. Sums are in float64, so that no square of a float32 or narrower number overflows or vanishes,
    and are NaN or infinite if an element is. On a device without float64 they are in float32; the loops for a CPU take
    a thousand elements at a time in float32, where it holds them.

    All tensors are read once each, by one kernel, however many there are: a call for each one would cost more than
    the sums of a small one. Sums are added up in one order: results repeat bit by bit, and do not depend on the number
    of threads. Nothing is differentiated through it.

    The device chooses the kernel: a loop that Numba compiles on a CPU, where `levada[cpu]` is installed; Triton's on a
    GPU; else the reference, tensor by tensor.

    Args:
        tensors: on one device, of real floating types, which may differ; of any shape, in any order of memory.

    Shape:
        `n` tensors -> `(n, 6)`.

    Raises:
        UsageError: if a tensor is not of a real floating type, not dense, or on another device than the first.

    Example:
        >>> tensor_statistics([torch.tensor([3.0, -4.0, 0.0]), torch.tensor([1e-30, torch.nan])]).tolist()
        [[-1.0, 25.0, 4.0, 1.0, 0.0, 0.0], [nan, nan, 1.0000000031710769e-30, 0.0, 1.0, 0.0]]
    """
    tensors = list(tensors)
    for tensor in tensors:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.device != tensors[0].device:
            raise UsageError(
                "tensor_statistics: tensors must be dense, of real floating types and on one device, got "
                f"{tensor.dtype} on {tensor.device}, {tensor.layout}, and the first on {tensors[0].device}. Convert "
                "it, or call this for each device."
            )
    with torch.no_grad():
        found: Tensor = STATISTICS(tensors)
    return found
