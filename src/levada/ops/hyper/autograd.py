"""Reading the streams of hyper-connections, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from levada.ops._fitting import axes
from levada.ops._reading import Reading, Schema, Sizes
from levada.ops.hyper import cpu, reference

__all__ = ["READ"]


def _sizes(state: Tensor, *_: Any) -> Sizes:
    tokens, n, dim = axes("state", state, "tokens", "n", "dim")
    given = (tokens, n, dim), (n,), (n, n), (n,), (n + 2, dim), (1,), (1,), (dim,), (dim,)
    results = (tokens, dim), (tokens, n), (tokens, n, n), (tokens, n)
    return Sizes(given, results, ((tokens, n, n + 2), (tokens, n, 2)))


READ: Final = Reading(
    "streams_read_hyper",
    Schema(
        ("state", "read", "mix", "write", "projection", "mix_scale", "write_scale", "gain", "shift?"),
        "float epsilon",
        ("x", "reads?", "mix", "writes"),
        ("features", "norms"),
    ),
    reference=reference,
    cpu=cpu,
    triton="levada.ops.hyper.triton",
    sizes=_sizes,
)
