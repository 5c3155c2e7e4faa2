"""levada keeps the learning signal alive at any depth: it carries it, measures it and proves it.

Names load on first use, so that `levada --help` and the report do not wait for torch.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it; the module `typing` takes as long as all the rest
if TYPE_CHECKING:
    from typing import Any

    from levada import blocks as blocks
    from levada import cells as cells
    from levada import initialise as initialise
    from levada import networks as networks
    from levada import supervision as supervision
    from levada import theory as theory
    from levada.connection import Connection as Connection
    from levada.connection import Layer as Layer
    from levada.connection import SingleStream as SingleStream
    from levada.connections import AttentionResidual as AttentionResidual
    from levada.connections import Dense as Dense
    from levada.connections import DepthWeightedAverage as DepthWeightedAverage
    from levada.connections import FractionalConnection as FractionalConnection
    from levada.connections import GatedResidual as GatedResidual
    from levada.connections import Highway as Highway
    from levada.connections import HyperConnection as HyperConnection
    from levada.connections import IdentityHyperConnection as IdentityHyperConnection
    from levada.connections import InputResidual as InputResidual
    from levada.connections import LayerScale as LayerScale
    from levada.connections import LearnedAugmentedResidual as LearnedAugmentedResidual
    from levada.connections import ManifoldHyperConnection as ManifoldHyperConnection
    from levada.connections import Momentum as Momentum
    from levada.connections import MultiwayDynamicDense as MultiwayDynamicDense
    from levada.connections import Plain as Plain
    from levada.connections import PostNorm as PostNorm
    from levada.connections import Residual as Residual
    from levada.connections import Reversible as Reversible
    from levada.connections import ReZero as ReZero
    from levada.connections import SinglePassManifoldHyperConnection as SinglePassManifoldHyperConnection
    from levada.connections import SkipInit as SkipInit
    from levada.connections import SparseHyperConnection as SparseHyperConnection
    from levada.connections import StochasticDepth as StochasticDepth
    from levada.connections import ValueResidual as ValueResidual
    from levada.conversion import convert as convert
    from levada.conversion import verify_preserved as verify_preserved
    from levada.diagnose import Finding as Finding
    from levada.diagnose import Fix as Fix
    from levada.diagnose import Report as Report
    from levada.diagnose.check import check as check
    from levada.diagnose.fix import fix as fix
    from levada.grouping import parameter_groups as parameter_groups
    from levada.probe import Probe as Probe
    from levada.probe import Trace as Trace
    from levada.runs import Run as Run
    from levada.sharding import shard_connections as shard_connections
    from levada.sharding import stacked_placement as stacked_placement
    from levada.stack import Stack as Stack
    from levada.study import Claim as Claim
    from levada.study import Study as Study
    from levada.supervision import Supervision as Supervision
    from levada.watching.watch import watch as watch

__version__ = "0.1.0"

_MODULES = ("blocks", "cells", "initialise", "networks", "supervision", "theory")
_NAMES = {
    "levada.connection": ("Connection", "Layer", "SingleStream"),
    "levada.stack": ("Stack",),
    "levada.connections": (
        "AttentionResidual",
        "Dense",
        "DepthWeightedAverage",
        "FractionalConnection",
        "GatedResidual",
        "Highway",
        "HyperConnection",
        "IdentityHyperConnection",
        "InputResidual",
        "LayerScale",
        "LearnedAugmentedResidual",
        "ManifoldHyperConnection",
        "Momentum",
        "MultiwayDynamicDense",
        "Plain",
        "PostNorm",
        "ReZero",
        "Residual",
        "Reversible",
        "SinglePassManifoldHyperConnection",
        "SkipInit",
        "SparseHyperConnection",
        "StochasticDepth",
        "ValueResidual",
    ),
    "levada.conversion": ("convert", "verify_preserved"),
    "levada.diagnose": ("Finding", "Fix", "Report"),
    "levada.diagnose.check": ("check",),
    "levada.diagnose.fix": ("fix",),
    "levada.grouping": ("parameter_groups",),
    "levada.probe": ("Probe", "Trace"),
    "levada.runs": ("Run",),
    "levada.sharding": ("shard_connections", "stacked_placement"),
    "levada.study": ("Claim", "Study"),
    "levada.supervision": ("Supervision",),
    "levada.watching.watch": ("watch",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted([*_MODULES, *_HOME])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"levada.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'levada' has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
