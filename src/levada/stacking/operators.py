"""Operations of PyTorch by what may be done with them: called in fewer steps, over what they read, where told."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from levada.stacking.recording import Recording, Step, Value

__all__ = ["ATEN", "IN_PLACE", "IN_PLACE_OF_FIRST", "WRITERS", "fused", "quick", "view_name", "writer"]

ATEN = torch.ops.aten
# Operations that write parameters' gradients, and what they are called as.
WRITERS: dict[Any, Callable[..., Any]] = {ATEN.mm.default: torch.mm, ATEN.sum.dim_IntList: torch.sum}
# Operations of which any argument may be written over.
IN_PLACE: dict[Any, Callable[..., Any]] = {
    ATEN.relu.default: torch.relu_,
    ATEN.tanh.default: torch.tanh_,
    ATEN.sigmoid.default: torch.sigmoid_,
    ATEN.add.Tensor: torch.Tensor.add_,
    ATEN.mul.Tensor: torch.Tensor.mul_,
}
# Operations of which the first argument may be written over.
IN_PLACE_OF_FIRST: dict[Any, Callable[..., Any]] = {ATEN.addmm.default: torch.Tensor.addmm_}
_QUICK_WRITERS = WRITERS | {ATEN.addmm.default: torch.addmm, ATEN.add.Tensor: torch.add, ATEN.mul.Tensor: torch.mul}


@functools.cache
def quick(operator: Any) -> Callable[..., Any]:
    """Return the binding of an operation that costs least to call: the generic one takes twice as long.

    Args:
        operator: of the dispatcher.
    """
    namespace, _, name = operator._schema.name.partition("::")
    if namespace != "aten":
        return operator  # type: ignore[no-any-return]
    for home in (torch._C._VariableFunctions, torch._C.TensorBase):
        if hasattr(home, name):
            return getattr(home, name)  # type: ignore[no-any-return]
    return operator  # type: ignore[no-any-return]


@functools.cache
def writer(operator: Any) -> tuple[Callable[..., Any], str] | None:
    """Return what computes the same into memory that it is given, and by which name that is given; None if nothing.

    Args:
        operator: of the dispatcher.
    """
    if operator in _QUICK_WRITERS:
        return _QUICK_WRITERS[operator], "out"
    expected = [(a.name, str(a.type)) for a in operator._schema.arguments]
    packet = operator.overloadpacket
    for overload in (getattr(packet, name) for name in packet.overloads()):
        given = [a for a in overload._schema.arguments if not a.is_out]
        outs = [a.name for a in overload._schema.arguments if a.is_out]
        # Generated ones compute into memory of their own, and copy.
        alike = [(a.name, str(a.type)) for a in given] == expected
        if alike and len(outs) == 1 and torch.Tag.generated not in overload.tags:
            return overload, outs[0]
    return None


def fused(recording: Recording) -> Recording:
    """Return the recording with sums of a matrix product in the backward pass as one operation.

    It rounds once where two do so twice.

    Args:
        recording: of a layer.
    """
    steps = recording.backward
    uses = Counter(n for step in (*recording.forward, *steps) for n in step.reads())
    uses.update(n for n in (*recording.gradients, *recording.outputs) if n is not None)
    products = {step.outputs.number: step for step in steps if step.operator is ATEN.mm.default}
    replaced: dict[int, Step | None] = {}
    for step in steps if not any(step.writes for step in steps) else ():
        terms = [a.number for a in step.args if isinstance(a, Value)]
        if step.operator is not ATEN.add.Tensor or step.kwargs or len({*terms}) != 2:
            continue  # what is added to itself is read twice
        place = next((i for i in (0, 1) if terms[i] in products and uses[terms[i]] == 1), None)
        if place is None or len({recording.layouts[n] for n in (*terms, step.outputs.number)}) > 1:
            continue
        product = products[terms[place]]
        replaced[id(product)] = None
        replaced[id(step)] = replace(step, operator=ATEN.addmm.default, args=(Value(terms[1 - place]), *product.args))
    found = (replaced.get(id(step), step) for step in steps)
    return replace(recording, backward=[step for step in found if step is not None])


def view_name(step: Step) -> str:
    """Return "t" or "view" for these two operations, "" for others.

    Args:
        step: of a recording.
    """
    return {ATEN.t.default: "t", ATEN.view.default: "view"}.get(step.operator, "")
