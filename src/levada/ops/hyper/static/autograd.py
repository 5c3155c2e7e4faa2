"""Reading streams by weights of all tokens, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from levada.ops._reading import Reading, Schema
from levada.ops.hyper.static import cpu, reference

__all__ = ["READ"]


def _fake(state: Tensor, *_: Any) -> tuple[Tensor]:
    return (state.new_empty(state.shape[0], state.shape[2]),)


READ: Final = Reading(
    "streams_read_static",
    Schema(("state", "read"), "", ("x",), ()),
    reference=reference,
    cpu=cpu,
    triton="levada.ops.hyper.static.triton",
    fake=_fake,
)
