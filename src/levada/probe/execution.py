"""One forward pass as it was executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from levada._errors import MeasurementError
from levada.probe.operation import Execution as Execution
from levada.probe.operation import Kind as Kind
from levada.probe.operation import Operation as Operation
from levada.probe.recorder import Recorder
from levada.probe.sites import execution_from

__all__ = ["Execution", "Kind", "Operation", "record"]


def record(model: nn.Module, run: Callable[[], Any]) -> Execution:
    """Run once, and find the block boundaries of the model's first forward pass.

    The boundaries follow the order of execution. Containers are opened (sequences, and modules whose children form a
    chain); leaves with weights, and modules in which paths branch and meet again, are the blocks. What has no weights
    (activations, dropout, pooling, reshaping), as a module or as a function, and a normalisation directly after a leaf
    belong to the block before them. Hooks and the function mode are removed again, also after an error.

    Args:
        model: the module whose blocks are wanted.
        run: calls the model, e.g. `lambda: model(x)`.

    Returns:
        The `Execution`.

    Raises:
        MeasurementError: if `run` did not call `model`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> execution = record(net, lambda: net(torch.ones(5, 3)))
        >>> [(site.name, site.shape) for site in execution.sites]
        [('0', (5, 4)), ('2', (5, 2))]
        >>> [operation.name for operation in execution.operations["0"]]
        ['linear', 'tanh']
    """
    recorder = Recorder(model)
    recorder.attach()
    try:
        run()
    finally:
        recorder.detach()
    if not recorder.finished:
        raise MeasurementError(
            f"record: run() returned without calling the model ({type(model).__name__}), or it called model.forward "
            "directly, which no hook sees. Call model(...) inside run."
        )
    return execution_from(recorder)
