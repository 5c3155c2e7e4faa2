"""Train a stack on one process or many: how it is spread over processes, and the steps that it takes there."""

from levada.training.parallel import Parallel as Parallel
from levada.training.parallel import materialise as materialise
from levada.training.parallel import parallelise as parallelise
from levada.training.parallel import process_mesh as process_mesh
from levada.training.pipeline import Pipeline as Pipeline

__all__ = ["Parallel", "Pipeline", "materialise", "parallelise", "process_mesh"]
