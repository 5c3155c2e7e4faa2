"""Train a stack on one process or many: a configuration, a plain loop, checkpoints, a record of every step.

Names load on first use, so that a configuration is read, and refused, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from levada._names import load_on_use

if TYPE_CHECKING:
    from levada.training.building import network_of as network_of
    from levada.training.checkpoint import Checkpoints as Checkpoints
    from levada.training.config import Config as Config
    from levada.training.engine import Engine as Engine
    from levada.training.files import content_hash as content_hash
    from levada.training.files import read as read
    from levada.training.files import resolve as resolve
    from levada.training.files import to_toml as to_toml
    from levada.training.loop import Trained as Trained
    from levada.training.loop import train as train
    from levada.training.parallel import materialise as materialise
    from levada.training.parallel import parallelise as parallelise
    from levada.training.parallel import process_mesh as process_mesh
    from levada.training.pipeline import Pipeline as Pipeline
    from levada.training.record import evaluations as evaluations
    from levada.training.record import losses as losses
    from levada.training.spread import Parallel as Parallel

_HOMES = {
    "building": ("network_of",),
    "checkpoint": ("Checkpoints",),
    "config": ("Config",),
    "engine": ("Engine",),
    "files": ("content_hash", "read", "resolve", "to_toml"),
    "loop": ("Trained", "train"),
    "parallel": ("materialise", "parallelise", "process_mesh"),
    "pipeline": ("Pipeline",),
    "record": ("evaluations", "losses"),
    "spread": ("Parallel",),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    value = globals()[name] = load_on_use(__name__, _HOMES, name)
    return value
