"""Reading the streams of hyper-connections, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from levada.ops._reading import Reading, Schema
from levada.ops.hyper import cpu, reference

__all__ = ["READ"]


def _fake(state: Tensor, *_: Any) -> tuple[Tensor, ...]:
    tokens, n, width = state.shape
    full = torch.promote_types(state.dtype, torch.float32)
    shapes = [(n,), (n, n), (n,), (n, n + 2), (n, 2)]
    return state.new_empty(tokens, width), *(state.new_empty(tokens, *shape, dtype=full) for shape in shapes)


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
    fake=_fake,
)
