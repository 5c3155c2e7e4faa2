"""Reading streams by weights of all tokens, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from levada.ops._fitting import axes
from levada.ops._reading import Reading, Schema, Sizes
from levada.ops.hyper.static import cpu, reference

__all__ = ["READ"]


def _sizes(state: Tensor, *_: Any) -> Sizes:
    tokens, n, dim = axes("state", state, "tokens", "n", "dim")
    return Sizes(((tokens, n, dim), (n,)), ((tokens, dim),))


READ: Final = Reading(
    "streams_read_static",
    Schema(("state", "read"), "", ("x",), ()),
    reference=reference,
    cpu=cpu,
    triton="levada.ops.hyper.static.triton",
    sizes=_sizes,
)
