"""What many layers do at once: parameters' gradients, of which a narrow layer's take longer to ask for than to compute.

What these gradients are made of is held in one tensor for a chunk of layers, `[layers, ...]`: each layer's operations
write their results there, and one product or sum makes the gradients of all of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from levada.stacking.operators import ATEN, IN_PLACE, view_name, writer
from levada.stacking.recording import Recording, Step, Value, numbers

__all__ = ["Chunked", "Held", "Room", "Rooms", "also_held", "chunk_length", "chunked", "passed_on"]

_MOST_LAYERS = 32
_MOST_BYTES = 2**20  # of one chunk's tensor: it is read again while it is still in the cache
_ALIGNMENT = 64  # bytes
_FEWEST_LAYERS = 4  # below, one call for all is no gain
_MOST_PASSES = 8  # between two that take the same memory: other shapes may come in turn


class Held(NamedTuple):
    """A value that a chunk of layers holds in one tensor.

    Attributes:
        number: of the value.
        written: the value that is written there: of a state before a layer, that after the layer before.
    """

    number: int
    written: int


@dataclass(frozen=True, slots=True)
class Chunked:
    """What is left to a chunk of layers.

    Attributes:
        later: steps of the backward pass that are done for all layers at once.
        calls: what does them: functions and their arguments as text; `h3` is value 3 of all layers, `w1` the memory
            for gradient 1.
        places: of the gradients that are made so, in the order of the parameters.
        kept: values of the forward pass that are held.
        made: the same of the backward pass.
        length: the most layers of a chunk.
    """

    later: list[Step]
    calls: list[tuple[Callable[..., Any], str]]
    places: list[int]
    kept: list[Held]
    made: list[Held]
    length: int


def chunk_length(depth: int, most: int) -> int:
    """Return how many layers a chunk has: few of all, as its tensors are memory that layers one by one do not need.

    Args:
        depth: number of layers that are run.
        most: as many as a program can take.
    """
    return max(1, min(most, max(_FEWEST_LAYERS, depth // 10)))


class Room(NamedTuple):
    """Memory for a value of each layer of a chunk.

    Attributes:
        whole: `[layers, ...]`.
        parts: the same by layer.
        kind: by which it is found.
    """

    whole: Tensor
    parts: tuple[Tensor, ...]
    kind: tuple[Any, ...]


@final
class Rooms:
    """Memory of chunks that is used again, with the views of it: to make these anew takes a tenth of a narrow layer.

    What no pass has taken for a while is let go: that of other shapes, or of several graphs at once.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[Any, ...], list[tuple[int, Room]]] = {}  # in the order in which they were given
        self._passes = 0

    def begin(self) -> None:
        """Begin another pass, and let go of what the last ones had no use for."""
        self._passes += 1
        for kind, free in [*self._free.items()]:
            unused = sum(given < self._passes - _MOST_PASSES for given, _ in free)
            del free[:unused]
            if not free:
                self._free.pop(kind, None)

    def take(self, *kind: Any) -> Room:
        """Return memory that nobody uses.

        Each layer's part begins at a multiple of 64 bytes, as memory of its own would: elsewhere products may round
        otherwise.

        Args:
            kind: number of layers; shape, type and device of the value.
        """
        free = self._free.get(kind)
        if free:
            with contextlib.suppress(IndexError):  # another thread was first
                return free.pop()[1]
        layers, shape, dtype, device = kind
        size = math.prod(shape)
        step = -(-size * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT // dtype.itemsize
        whole = torch.empty((layers, step), dtype=dtype, device=device)[:, :size].view(layers, *shape)
        return Room(whole, whole.unbind(0), kind)

    def give(self, room: Room) -> None:
        """Take back memory that nobody uses any more.

        Args:
            room: that `take` returned.
        """
        self._free.setdefault(room.kind, []).append((self._passes, room))

    @property
    def num_bytes(self) -> int:
        """What is held for the next pass."""
        return sum(room.whole.untyped_storage().nbytes() for free in self._free.values() for _, room in free)


def passed_on(parts: tuple[Tensor, ...], first: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what the first layer reads, and where each layer writes what the next one reads.

    The last one's is memory of its own: it outlives the chunk.

    Args:
        parts: what each layer reads, in the order in which they run.
        first: what the first one reads.
    """
    return parts[0].copy_(first), (*parts[1:], torch.empty_like(first))


def chunked(recording: Recording, writing: Mapping[int, int], steps: Iterable[Step]) -> Chunked:
    """Return what can be left to a chunk of layers.

    Args:
        recording: of a layer.
        writing: which gradient a step writes, by the step's id.
        steps: of the backward pass.
    """
    holder = _Holder(recording)
    found = [(step, writing[id(step)]) for step in steps if id(step) in writing]
    calls = [(step, place, call) for step, place in found if (call := holder.call(step, place)) is not None]
    bytes_held = [_num_bytes(recording, held.number) for held in holder.held.values()]
    made = {n for step in recording.backward for n in numbers(step.outputs)} | {*recording.cotangents}
    return Chunked(
        later=[step for step, _, _ in calls],
        calls=[call for _, _, call in calls],
        places=sorted(place for _, place, _ in calls),
        kept=[held for held in holder.held.values() if held.number not in made],
        made=[held for held in holder.held.values() if held.number in made],
        length=min([_MOST_LAYERS, *(_MOST_BYTES // size for size in bytes_held)]) if calls else 1,
    )


def also_held(recording: Recording, chunk: Chunked, kept: Iterable[int]) -> Chunked:
    """Return the same with what else the forward pass keeps held too, as far as there is room for it.

    Args:
        recording: of a layer.
        chunk: what is left to a chunk of layers.
        kept: values that the backward pass needs.
    """
    holder, most = _Holder(recording), _MOST_BYTES // chunk.length
    before = {held.number for held in chunk.kept}
    found = [holder.held_as(n) for n in kept if n not in before and _num_bytes(recording, n) <= most and chunk.calls]
    return replace(chunk, kept=[*chunk.kept, *(held for held in found if held is not None)])


@final
class _Holder:
    """Finds which values can be written into a chunk's tensor by what makes them."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.producers = {n: step for step in (*recording.forward, *recording.backward) for n in numbers(step.outputs)}
        self.ends = {n for end in (*recording.outputs, *recording.gradients) for n in self._roots(end)}
        self.held: dict[int, Held] = {}

    def call(self, step: Step, place: int) -> tuple[Callable[..., Any], str] | None:
        """Return what does a step for all layers at once, or None; what it reads is held from now on."""
        sources = [self._source(n) for n in (a.number for a in step.args if isinstance(a, Value))]
        found = [source for source in sources if source is not None]
        if len(found) < len(sources) or step.kwargs:
            return None
        texts = [text for _, text in found]
        if step.operator is ATEN.mm.default:
            function: Callable[..., Any] = torch.bmm
        else:
            dims, *keep = step.args[1:]
            if not dims:
                return None
            function = torch.sum
            texts += [repr([d + 1 if d >= 0 else d for d in dims]), *map(repr, keep)]
        self.held |= {held.number: held for held, _ in found}
        return function, f"{', '.join(texts)}, out=w{place}"

    def _source(self, number: int) -> tuple[Held, str] | None:
        """Return what must be held of an argument, and the argument of all layers in terms of it."""
        views = ""
        while (step := self.producers.get(number)) is not None and view_name(step):
            shape = self.recording.layouts[number][0]
            if view_name(step) == "t" and len(shape) != 2:
                return None
            views = (".transpose(1, 2)" if view_name(step) == "t" else f".view{(-1, *shape)}") + views
            number = step.args[0].number
        held = self.held_as(number)
        return None if held is None else (held, f"h{number}{views}")

    def held_as(self, number: int) -> Held | None:
        """Return how a value can be held; None if it cannot."""
        written = self._written(number)
        if written is None or not self._is_small(number) or not self._is_told(written):
            return None
        return Held(number, written)

    def _written(self, number: int) -> int | None:
        """Return the value of a layer that is this value of the same layer, or of the next one to run."""
        recording = self.recording
        gradients = recording.gradients[: len(recording.states)]
        pairs: tuple[tuple[list[int], Sequence[int | None]], ...]
        if number in self.ends and number not in recording.outputs and number not in recording.gradients:
            return None  # an end is a view of it
        pairs = (recording.states, recording.outputs), (recording.cotangents, gradients)
        for before, after in pairs:
            if number in before:
                written = after[before.index(number)]
                return written if [*after].count(written) == 1 else None
        return number if number not in self.ends else None  # an end outlives the chunk

    def _roots(self, number: int | None) -> set[int]:
        """Return a value and those whose memory it shares."""
        roots: set[int] = set()
        open_ends = [] if number is None else [number]
        while open_ends:
            roots.add(root := open_ends.pop())
            step = self.producers.get(root)
            if step is not None and (step.views or step.writes):
                given = {a.number for a in step.args if isinstance(a, Value)}
                open_ends += given - roots  # a step in place gives back what it was given
        return roots

    def _is_small(self, number: int) -> bool:
        shape, strides = self.recording.layouts[number][:2]
        contiguous = torch.empty(shape, device="meta").stride() == strides
        return contiguous and 0 < _num_bytes(self.recording, number) <= _MOST_BYTES // _FEWEST_LAYERS

    def _is_told(self, number: int) -> bool:
        """Whether what makes a value can be told where to write."""
        step = self.producers.get(number)
        if step is None or not isinstance(step.outputs, Value) or step.writes or step.draws or step.views:
            return False
        return step.operator in IN_PLACE or writer(step.operator) is not None


def _num_bytes(recording: Recording, number: int) -> int:
    shape, _, dtype = recording.layouts[number][:3]
    return shape.numel() * dtype.itemsize
