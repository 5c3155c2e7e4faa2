"""Statistics of many tensors as an operation that PyTorch knows; it has no derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from levada.ops._define import define, triton_or_reference
from levada.ops._fitting import Signature
from levada.ops.statistics import cpu, reference
from levada.ops.statistics.reference import COLUMNS

__all__ = ["STATISTICS"]

_KERNELS: Final = "levada.ops.statistics.triton"


def _fake(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors:
        return torch.empty(0, len(COLUMNS), dtype=torch.float64)
    wide = reference.wide_type(tensors[0].device)
    return torch.empty(len(tensors), len(COLUMNS), dtype=wide, device=tensors[0].device)


def _vmap(info: Any, dims: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Measure each tensor of the batch on its own: all of them in one call."""
    rows = [
        tensor if dim is None else tensor.select(dim, i)
        for i in range(info.batch_size)
        for tensor, dim in zip(tensors, dims[0], strict=True)
    ]
    return STATISTICS(rows).view(info.batch_size, len(tensors), len(COLUMNS)), 0


STATISTICS = define(
    "tensor_statistics",
    Signature(
        "(Tensor[] tensors) -> Tensor",
        lambda tensors: (None,),
    ),
    reference=reference.statistics,
    kernels={"CPU": cpu.statistics, "CUDA": triton_or_reference(_KERNELS, "statistics", reference.statistics)},
    fake=_fake,
    vmap=_vmap,
    setup_context=None,
    backward=None,
)
