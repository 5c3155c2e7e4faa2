"""Python code that runs a recorded layer again and again, without modules and without autograd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levada.stacking.chunks import also_held, chunked
from levada.stacking.exposed import Exposed, exposed
from levada.stacking.operators import WRITERS, fused, view_name
from levada.stacking.recording import Recording, Step, numbers
from levada.stacking.source import Source, inside, listed, loop, tuple_of

__all__ = ["Program", "Written", "program_of"]


class Written(NamedTuple):
    """How the gradients of one parameter are written.

    Attributes:
        shape: of a layer's part.
        transposed: whether the memory is the transpose of that.
        whole: whether those of a chunk of layers are written at once.
    """

    shape: torch.Size
    transposed: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class Program:
    """Loops over a chunk of layers. A row is what one reads beside the state: parameters, buffers, views of them.

    Attributes:
        prepare: `(*parameters, *buffers) -> row`.
        forward: `(rows, *states) -> states`, of any number of layers.
        forward_keeping: `(rows, rooms, keep, *states) -> states`; `keep` is called with what the backward pass needs,
            of each layer and then of the chunk.
        backward: `(rows, rooms, held, take, slices, whole, *cotangents) -> cotangents`; rows and slices from the last
            layer to the first; `held` is what was kept of the chunk, and `take` returns what was kept of the layers;
            the parameters' gradients are written into the layers' slices, or into the whole chunk's memory.
        written: for each parameter how its gradient is written; None for what gets none.
        length: the most layers of a chunk; 1 if it makes no difference.
        draws: whether random numbers are drawn.
        exposed: what the backward pass reads that others can write into.
    """

    prepare: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., tuple[Tensor, ...]]
    forward_keeping: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    written: tuple[Written | None, ...]
    length: int
    draws: bool
    exposed: Exposed


def program_of(recording: Recording, num_parameters: int) -> Program:
    """Return the program of a recorded layer.

    Args:
        recording: of the layer.
        num_parameters: how many of its constants are parameters.
    """
    layer = _Layer(fused(recording), num_parameters)
    return Program(
        prepare=layer.prepare(),
        forward=layer.forward(),
        forward_keeping=layer.forward_keeping(),
        backward=layer.backward(),
        written=layer.slices.written(num_parameters, layer.chunk.places),
        length=layer.chunk.length,
        draws=any(step.draws for step in (*layer.ahead, *layer.back)),
        exposed=exposed(recording, layer.kept_alone, layer.read_later, num_parameters),
    )


class _Layer:
    """What is done when: once, by each layer on the way forward and back, and by a chunk of layers."""

    def __init__(self, recording: Recording, num_parameters: int) -> None:
        self.recording, self.source = recording, Source(recording)
        own = len(recording.states)
        self.gradients = recording.gradients[:own]
        self.slices = _Slices(recording, recording.gradients[own : own + num_parameters])
        chunk = chunked(recording, self.slices.writing, self.slices.steps)
        passed = {g for g in self.gradients if g is not None}
        self.ends = passed | set(self.slices.copied) | {h.written for h in chunk.made}
        steps = [step for step in self.slices.steps if not any(step is later for later in chunk.later)]
        self.outs = {key: f"o{i}" for key, i in self.slices.writing.items() if i not in chunk.places}
        self.back = _alive(steps, self.ends, also=self.outs)
        self.read_later = {n for step in self.back for n in step.reads()} | self.ends
        ahead = _alive(recording.forward, {*recording.outputs, *self.read_later, *(h.written for h in chunk.kept)})
        self.hoisted = _hoisted(ahead, recording.constants)
        self.row = [*recording.constants, *(n for step in self.hoisted for n in sorted(numbers(step.outputs)))]
        self.ahead = [step for step in ahead if not any(step is h for h in self.hoisted)]
        made = {n for step in self.ahead for n in numbers(step.outputs)} | set(recording.states)
        self.kept = sorted((self.read_later & made) - set(self.row))
        self.chunk = also_held(recording, chunk, self.kept)
        self.held = [h.number for h in self.chunk.kept]
        self.kept_alone = [n for n in self.kept if n not in self.held]

    def prepare(self) -> Callable[..., Any]:
        lines = self.source.body(self.hoisted, self.row)
        return self.source.function(listed(self.recording.constants), [*lines, f"return {tuple_of(self.row)}"])

    def forward(self) -> Callable[..., Any]:
        body = self.source.body(self.ahead, {*self.recording.outputs, *self.kept})
        return self.source.function(
            f"rows, {listed(self.recording.states)}",
            [loop({tuple_of(self.row): "rows"}), *inside([*body, self._advance()]), self._return()],
        )

    def forward_keeping(self) -> Callable[..., Any]:
        states, held = self.recording.states, self.chunk.kept
        keep = [f"keep({tuple_of(self.kept_alone)})"] if self.kept_alone else []
        body = self.source.body(self.ahead, {*self.recording.outputs, *self.kept}, held=held)
        return self.source.function(
            f"rows, rooms, keep, {listed(states)}",
            [
                *self.source.begin(held, states, backward=False),
                loop({tuple_of(self.row): "rows"} | {f"t{n}": f"t{n}" for n in self.held}),
                *inside([*body, *keep, self._advance()]),
                f"keep({tuple_of(self.held, 'r')})",
                self._return(),
            ],
        )

    def backward(self) -> Callable[..., Any]:
        source, cotangents, made = self.source, self.recording.cotangents, [h.number for h in self.chunk.made]
        places = [i for i in range(len(self.slices.shapes)) if i not in self.chunk.places]
        spare = {*cotangents} - {*made}
        body = source.body(self.back, self.ends, self.outs, self.chunk.made, spare)
        over = spare & {*source.written_over(self.back, self.ends, spare).values()}
        taken = {tuple_of(self.row): "rows", tuple_of(places, "o"): "slices"} | {f"t{n}": f"t{n}" for n in made}
        taken |= {f"v{n}": f"r{n}.parts[::-1]" for n in self.kept if n in self.held}
        following = [
            f"v{g}" if g is not None else f"{source.constant(torch.zeros_like)}(v{c})"
            for g, c in zip(self.gradients, cotangents, strict=False)
        ]
        return source.function(
            f"rows, rooms, held, take, slices, whole, {listed(cotangents)}",
            [
                f"{tuple_of(self.held, 'r')} = held",
                *(f"h{n} = r{n}.whole" for n in self.held),
                *(f"v{n} = v{n}.clone()" for n in sorted(over)),
                *source.begin(self.chunk.made, cotangents, backward=True),
                loop(taken),
                *inside([f"{tuple_of(self.kept_alone)} = take()"] if self.kept_alone else []),
                *inside([*body, *(f"o{i}.copy_(v{n})" for i, n in self.slices.copies)]),
                *inside([f"{tuple_of(cotangents)} = ({''.join(f'{g}, ' for g in following)})"]),
                *source.at_once(self.chunk),
                f"return {tuple_of(cotangents)}",
            ],
        )

    def _advance(self) -> str:
        return f"{tuple_of(self.recording.states)} = {tuple_of(self.recording.outputs)}"

    def _return(self) -> str:
        return f"return {tuple_of(self.recording.states)}"


class _Slices:
    """How the parameters' gradients are written into their slices: by the operation that makes them, or as copies."""

    def __init__(self, recording: Recording, targets: Sequence[int | None]) -> None:
        self.steps = _alive(recording.backward, [g for g in recording.gradients if g is not None])
        self.writing: dict[int, int] = {}  # by the step that writes, the place of what it writes
        self.copies: list[tuple[int, int]] = []
        self.shapes: dict[int, tuple[torch.Size, bool]] = {}
        uses = Counter(n for step in self.steps for n in step.reads())
        uses.update(g for g in recording.gradients if g is not None)
        for i, target in enumerate(targets):
            if target is None:
                continue
            place = len(self.shapes)
            producer, transposed, number = self._producer(target), False, target
            views = []
            while producer is not None and uses[number] == 1 and view_name(producer) in ("t", "view"):
                views.append(producer)
                transposed ^= view_name(producer) == "t"
                number = next(iter(producer.reads()))
                producer = self._producer(number)
            direct = len(views) < 2 and producer is not None and uses[number] == 1
            if direct and producer is not None and producer.operator in WRITERS:
                self.writing[id(producer)] = place
                self.steps = [step for step in self.steps if all(step is not view for view in views)]
                self.shapes[i] = recording.layouts[number][0], transposed
            else:
                self.copies.append((place, target))
                self.shapes[i] = recording.layouts[target][0], False
        self.copied = {number for _, number in self.copies}

    def written(self, num_parameters: int, whole: Sequence[int]) -> tuple[Written | None, ...]:
        """Return how each parameter's gradient is written, those at some places for a chunk of layers at once."""
        found = {i: Written(*shape, place in whole) for place, (i, shape) in enumerate(self.shapes.items())}
        return tuple(found.get(i) for i in range(num_parameters))

    def _producer(self, number: int) -> Step | None:
        return next((step for step in self.steps if number in numbers(step.outputs)), None)


def _alive(steps: Iterable[Step], needed: Iterable[int], *, also: Iterable[int] = ()) -> list[Step]:
    """Return the steps whose results are needed, or that do more than return something."""
    alive, wanted, kept = [], set(needed), set(also)
    for step in reversed([*steps]):
        if step.writes or step.draws or id(step) in kept or numbers(step.outputs) & wanted:
            alive.append(step)
            wanted |= step.reads()
    return alive[::-1]


def _hoisted(steps: Iterable[Step], constants: Iterable[int]) -> list[Step]:
    """Return the views of what all passes read from the same memory: they are made once."""
    fixed, found = set(constants), []
    for step in steps:
        if step.views and step.reads() <= fixed:
            fixed |= numbers(step.outputs)
            found.append(step)
    return found
