"""Reading streams through gates, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from levada.ops._reading import Reading, Schema
from levada.ops.gated import cpu, reference

__all__ = ["READ"]


def _fake(
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None, epsilon: float
) -> tuple[Tensor, ...]:
    tokens, n, width = state.shape
    rows = 0 if projection is None else len(projection)
    full = torch.promote_types(state.dtype, torch.float32)
    kept = (state.new_empty(tokens, size, dtype=full) for size in (rows, len(down) + rows, n))
    return state.new_empty(tokens, width), *kept


READ: Final = Reading(
    "streams_read_gated",
    Schema(
        ("state", "gain", "down", "up", "projection?"),
        "float epsilon",
        ("x", "writes"),
        ("found", "inverse"),
    ),
    reference=reference,
    cpu=cpu,
    triton="levada.ops.gated.triton",
    fake=_fake,
)
