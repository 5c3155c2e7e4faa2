"""Initialisations by name of paper: each changes a module in place and returns it.

All set the weights and biases of Linear, Conv1d-3d and, but for `lsuv`, MultiheadAttention. None touches embeddings,
normalisation or what a connection mixes with. `INITIALISATIONS` lists them. Recurrent modules have their own: `chrono`
and `orthogonal_recurrence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from levada.initialise.data import lsuv as lsuv
from levada.initialise.depth import deepnorm as deepnorm
from levada.initialise.depth import fixup as fixup
from levada.initialise.isometry import delta_orthogonal as delta_orthogonal
from levada.initialise.isometry import looks_linear as looks_linear
from levada.initialise.isometry import orthogonal as orthogonal
from levada.initialise.recurrent import chrono as chrono
from levada.initialise.recurrent import orthogonal_recurrence as orthogonal_recurrence
from levada.initialise.variance import critical as critical
from levada.initialise.variance import gaussian as gaussian
from levada.initialise.variance import glorot as glorot
from levada.initialise.variance import he as he
from levada.initialise.variance import pytorch_default as pytorch_default

__all__ = [
    "INITIALISATIONS",
    "chrono",
    "critical",
    "deepnorm",
    "delta_orthogonal",
    "fixup",
    "gaussian",
    "glorot",
    "he",
    "looks_linear",
    "lsuv",
    "orthogonal",
    "orthogonal_recurrence",
    "pytorch_default",
]

INITIALISATIONS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        f.__name__: f
        for f in (
            pytorch_default,
            glorot,
            he,
            gaussian,
            critical,
            orthogonal,
            delta_orthogonal,
            looks_linear,
            lsuv,
            fixup,
            deepnorm,
        )
    }
)
