"""What surrounds the model: how large its inputs are and what reads them, and which mode its modules are in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from levada.inputs import Batch
from levada.probe import Execution
from levada.probe.bookkeeping import acts_by_mode
from levada.probe.operation import Operation
from levada.probe.recorder import Recorder

__all__ = ["InputScale", "Mode", "input_scale", "mode_of", "standardised"]

_NORMS = (nn.modules.batchnorm._BatchNorm,)
# Readers for which the size of what they read matters: no normalisation comes before them.
_LINEAR = frozenset({"linear", "conv", "recurrent", "attention"})


@dataclass(frozen=True, slots=True)
class InputScale:
    """The floating input that a linear map reads first.

    Attributes:
        rms: root mean square of its elements.
        mean: their mean.
        deviation: root mean square of what is left of a feature without its mean over the batch.
        features: largest standard deviation of a feature over the smallest that is not zero.
        reader: the module that reads it.
        normalised: whether what it gives is normalised next.
    """

    rms: float
    mean: float
    deviation: float
    features: float
    reader: str
    normalised: bool


@dataclass(frozen=True, slots=True)
class Mode:
    """Which of the modules that act differently in training are in which mode.

    Attributes:
        training: whether the model itself is in training mode.
        learning: names of such modules in training mode.
        evaluating: names of such modules in evaluation mode.
        batch_norms: those among `evaluating` that normalise by running statistics and learn.
        change: root mean square of the output's change when the model is in the other mode, over its size; None where
            that was not tested.
    """

    training: bool
    learning: tuple[str, ...]
    evaluating: tuple[str, ...]
    batch_norms: tuple[str, ...]
    change: float | None = None


def mode_of(model: nn.Module) -> Mode:
    """Return the modes of a model's dropout and batch normalisation.

    Args:
        model: the model.

    Example:
        >>> mode_of(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval())
        Mode(training=False, learning=(), evaluating=('1',), batch_norms=(), change=None)
    """
    acting = {name: m for name, m in model.named_modules() if acts_by_mode(m)}
    resting = {name: m for name, m in acting.items() if not m.training}
    frozen = {name for name, m in resting.items() if not any(p.requires_grad for p in m.parameters())}
    norms = tuple(name for name, m in resting.items() if isinstance(m, _NORMS) and name not in frozen)
    return Mode(model.training, tuple(n for n in acting if n not in resting), tuple(resting), norms)


def input_scale(recorder: Recorder, execution: Execution, batches: Sequence[Batch]) -> InputScale | None:
    """Return the size of the floating input that a linear map reads before anything else does, or None.

    Args:
        recorder: after a recorded pass.
        execution: its blocks.
        batches: what was given to the model.
    """
    root = recorder.root
    if root is None:
        return None
    floating = [n for n in root.inputs if n in recorder.floating]
    given = [[t for t in b.tensors() if t.is_floating_point()] for b in batches]
    operations = [o for site in execution.sites for o in execution.operations[site.name]]
    for place, number in enumerate(floating):
        reader = _reader(number, operations)
        rows = [tensors[place] for tensors in given if len(tensors) > place]
        if reader is None or not rows or rows[0].dim() < 2 or any(t.shape[1:] != rows[0].shape[1:] for t in rows):
            continue
        values = torch.cat([t.detach() for t in rows]).double()
        dims = _feature_dims(values)
        apart = values.std(dims, correction=0)
        varying = apart[apart > 0]
        normalised = any(o.kind == "normalisation" and reader.output in o.inputs for o in operations)
        return InputScale(
            rms=float(values.square().mean().sqrt()),
            mean=float(values.mean()),
            deviation=float(apart.square().mean().sqrt()),
            features=float(varying.max() / varying.min()) if varying.numel() else math.nan,
            reader=reader.module,
            normalised=normalised,
        )
    return None


def _reader(number: int, operations: Iterable[Operation]) -> Operation | None:
    """Return the linear map that reads a value, or a reshaping of it, if nothing else reads it."""
    following = {number}
    readers: list[Operation] = []
    for operation in operations:
        if not following.intersection(operation.inputs):
            continue
        if operation.kind == "reshape":
            following.add(operation.output)
        else:
            readers.append(operation)
    known = bool(readers) and all(o.kind in _LINEAR and o.parameters for o in readers)
    return readers[0] if known else None


def _feature_dims(values: Tensor) -> tuple[int, ...]:
    """Return the dimensions over which one feature varies: features are last, or channels of an image."""
    if values.dim() < 4:
        return tuple(range(values.dim() - 1))
    return (0, *range(2, values.dim()))


def standardised(batches: Sequence[Batch]) -> Batch | None:
    """Return the first batch with every feature of its floating inputs at mean 0 and deviation 1 over all batches.

    Args:
        batches: at least one, alike.
    """

    def plain(index: int | str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
            return value
        all_of = [b.args[index] if isinstance(index, int) else b.kwargs[index] for b in batches]
        values = torch.cat([t.detach() for t in all_of]).double()
        dims = _feature_dims(values)
        mean, apart = values.mean(dims, keepdim=True), values.std(dims, correction=0, keepdim=True)
        return ((value.double() - mean) / torch.where(apart > 0, apart, 1.0)).to(value.dtype)

    try:
        args = tuple(plain(i, value) for i, value in enumerate(batches[0].args))
        kwargs: Mapping[str, Any] = {key: plain(key, value) for key, value in batches[0].kwargs.items()}
    except (RuntimeError, IndexError, KeyError):
        return None  # batches that are not alike
    return replace(batches[0], args=args, kwargs=kwargs)
