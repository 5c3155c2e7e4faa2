"""What others can write into between a layer's forward and its backward pass: outputs, and buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from levada.stacking.recording import Recording, RecordingError, Step, numbers

__all__ = ["Exposed", "exposed", "require_apart"]


class Exposed(NamedTuple):
    """What the backward pass reads that is not its own.

    Attributes:
        outputs: for each tensor of the state, whether what is kept of some layer is the memory of the last one's.
        read: places of the buffers that the backward pass reads.
        written: places of the buffers that the forward pass writes into.
    """

    outputs: tuple[bool, ...]
    read: tuple[int, ...]
    written: tuple[int, ...]


def exposed(recording: Recording, kept: Iterable[int], read: Iterable[int], num_parameters: int) -> Exposed:
    """Return what the backward pass of a recorded layer reads that others can write into.

    Args:
        recording: of the layer.
        kept: values of the forward pass that are kept where they are.
        read: values that the backward pass reads.
        num_parameters: how many of the recording's constants are parameters; the others are buffers.
    """
    memory = recording.memory
    states, outputs = ([memory[n] for n in ends] for ends in (recording.states, recording.outputs))
    held, needed = {memory[n] for n in kept}, {memory[n] for n in read}
    found = [place in held for place in outputs]
    for _ in outputs:  # a state that a layer passes on is the output of an earlier one
        found = [
            known or any(place == state and found[i] for i, state in enumerate(states))
            for known, place in zip(found, outputs, strict=True)
        ]
    buffers = [memory[n] for n in recording.constants[num_parameters:]]
    into = {memory[n] for step in recording.forward if step.writes for n in _written(step)}
    return Exposed(
        tuple(found),
        tuple(i for i, place in enumerate(buffers) if place in needed),
        tuple(i for i, place in enumerate(buffers) if place in into),
    )


def _written(step: Step) -> set[int]:
    arguments = step.operator._schema.arguments
    into = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    given = [step.kwargs.get(arguments[i].name, step.args[i] if i < len(step.args) else None) for i in into]
    return numbers(given)


def require_apart(rows: Sequence[Sequence[Tensor]], found: Exposed) -> None:
    """Raise if what a layer writes into is read by another one's backward pass, or under another name.

    Args:
        rows: the buffers of each layer.
        found: of one layer.

    Raises:
        RecordingError: if it is; autograd sees it where layers run one by one.
    """
    if not (found.read and found.written):
        return
    read = Counter(row[i].untyped_storage()._cdata for row in rows for i in found.read)
    for row in rows:
        for i in found.written:
            if read[row[i].untyped_storage()._cdata] > (i in found.read):
                raise RecordingError("it writes into a buffer that the backward pass of another one reads")
