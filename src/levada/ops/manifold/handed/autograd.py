"""Reading streams by weights that were handed on, as PyTorch knows it: derivatives of any order backward."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from levada.ops._reading import Reading, Schema, Sizes
from levada.ops.manifold.autograd import FORM, sizes
from levada.ops.manifold.handed import cpu, reference

__all__ = ["READ"]


def _sizes(state: Tensor, handed: Tensor, *others: Any) -> Sizes:
    (streams, *parameters), results, kept = sizes(state, *others)
    return Sizes((streams, streams[:2], *parameters), results, kept)


READ: Final = Reading(
    "streams_read_handed",
    Schema(
        ("state", "handed", "projection", "scale", "bias"),
        FORM,
        ("x", "reads?", "writes", "mix"),
        ("features", "inverse"),
    ),
    reference=reference,
    cpu=cpu,
    triton="levada.ops.manifold.handed.triton",
    sizes=_sizes,
)
