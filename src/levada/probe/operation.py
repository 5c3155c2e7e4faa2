"""What one forward pass did, as data: block boundaries in order, and the operations between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from levada.probe.trace import Site

__all__ = ["Execution", "Kind", "Operation"]

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
