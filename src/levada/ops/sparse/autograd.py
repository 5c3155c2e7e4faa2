"""Reading streams that are scored, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from levada.ops._fitting import axes
from levada.ops._reading import Reading, Schema, Sizes
from levada.ops.sparse import cpu, reference

__all__ = ["READ"]


def _sizes(state: Tensor, projection: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Sizes:
    tokens, n, dim = axes("state", state, "tokens", "n", "dim")
    rows, _ = axes("projection", projection, "scores + n", "n dim")
    rows = max(rows, n)
    given = (tokens, n, dim), (rows, n * dim), (1,), (n,)
    return Sizes(given, ((tokens, dim), (tokens, n), (tokens, rows - n)), ((tokens, rows), (tokens, 3)))


READ: Final = Reading(
    "streams_read_sparse",
    Schema(
        ("state", "projection", "scale", "bias"),
        "float epsilon",
        ("x", "reads?", "scores"),
        ("found", "norms"),
    ),
    reference=reference,
    cpu=cpu,
    triton=None,
    sizes=_sizes,
)
