"""Train a stack on one process or many: a configuration, a plain loop, checkpoints, a record of every step."""

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
from levada.training.parallel import Parallel as Parallel
from levada.training.parallel import materialise as materialise
from levada.training.parallel import parallelise as parallelise
from levada.training.parallel import process_mesh as process_mesh
from levada.training.pipeline import Pipeline as Pipeline
from levada.training.record import evaluations as evaluations
from levada.training.record import losses as losses

__all__ = [
    "Checkpoints",
    "Config",
    "Engine",
    "Parallel",
    "Pipeline",
    "Trained",
    "content_hash",
    "evaluations",
    "losses",
    "materialise",
    "network_of",
    "parallelise",
    "process_mesh",
    "read",
    "resolve",
    "to_toml",
    "train",
]
