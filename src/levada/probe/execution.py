"""One forward pass as it was executed: block boundaries in order, and the operations between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch as torch
from torch import nn

from levada._errors import MeasurementError
from levada.probe.trace import Site

__all__ = ["Execution", "Kind", "Operation", "record"]

Kind: TypeAlias = Literal[
    "linear",
    "conv",
    "recurrent",
    "embedding",
    "attention",
    "activation",
    "normalisation",
    "add",
    "multiply",
    "dropout",
    "pool",
    "reshape",
    "concatenate",
    "loss",
    "other",
]


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a torch function, as the model made it.

    Attributes:
        kind: what it does to the signal.
        name: canonical name of the function: "linear", "conv2d", "relu", "sigmoid", "gelu", "layer_norm", "add", ...
        module: qualified name of the innermost module in whose forward it ran; "" for the model itself.
        inputs: numbers of the activations that it read, in order; parameters and constants are left out.
        output: number of the first floating tensor that it returned.
        parameters: qualified names of the parameters that it read, in order: weight before bias.
        options: arguments that are plain numbers or strings, e.g. `{"negative_slope": 0.2}`, `{"p": 0.1}`.
        shape: shape of the output.

    A number stands for one value: an operation in place gives its tensor a new number. In a hand-written skip
    `x + f(x)` one of the inputs of the operation of kind "add" is the block's own input, `Execution.input_of[site]`.
    """

    kind: Kind
    name: str
    module: str
    inputs: tuple[int, ...]
    output: int
    parameters: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Execution:
    """What one forward pass did.

    Attributes:
        sites: block boundaries in order of execution.
        operations: site name -> the operations between the previous boundary and this one, in order.
        input_of: site name -> number of the tensor that entered the block.
        output_of: site name -> number of the tensor at the boundary.
        shape_of: number -> shape.
        note: how the boundaries were found when not from modules; "" otherwise.
    """

    sites: tuple[Site, ...]
    operations: Mapping[str, tuple[Operation, ...]]
    input_of: Mapping[str, int]
    output_of: Mapping[str, int]
    shape_of: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    note: str = ""


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
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> execution = record(net, lambda: net(torch.ones(5, 3)))
        >>> [(site.name, site.shape) for site in execution.sites]
        [('0', (5, 4)), ('2', (5, 2))]
        >>> [operation.name for operation in execution.operations["0"]]
        ['linear', 'tanh']
    """
    from levada.probe.recorder import Recorder
    from levada.probe.sites import execution_from

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
