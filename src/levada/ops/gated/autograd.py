"""Reading streams through gates, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from levada.ops._fitting import axes
from levada.ops._reading import Reading, Schema, Sizes
from levada.ops.gated import cpu, reference

__all__ = ["READ"]


def _sizes(state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None, epsilon: float) -> Sizes:
    tokens, n, dim = axes("state", state, "tokens", "n", "dim")
    rank, _ = axes("down", down, "rank", "n dim")
    writes = 0 if projection is None else n
    given = (tokens, n, dim), (n, dim), (rank, n * dim), (n * dim, rank), (n, n * dim)
    return Sizes(given, ((tokens, dim), (tokens, writes)), ((tokens, rank + writes), (tokens, n)))


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
    sizes=_sizes,
)
