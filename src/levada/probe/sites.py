"""Block boundaries, found in one recorded forward pass by order of execution."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import nn

from levada.connection import Connection, Layer
from levada.probe.operation import Execution, Operation
from levada.probe.recorder import Event, Frame, Recorder
from levada.probe.trace import Site

__all__ = ["execution_from"]

Role: TypeAlias = Literal["anchor", "norm", "free", "loss"]
_PARAMETRISED = ("linear", "conv", "embedding", "recurrent", "attention")
_READ_SHAPES = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")  # and nothing else
_LARGEST_BRANCH = 4  # leaves in a residual branch that was written by hand into a larger forward


@dataclass(slots=True, eq=False)
class Unit:
    """The smallest part of a block: one call of a module that is not opened, or one function."""

    role: Role
    name: str
    kind: str
    composite: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    events: tuple[Event, ...]
    parameters: tuple[str, ...]

    @property
    def shapes_only(self) -> bool:
        """Whether it pools, reshapes or drops, and nothing else."""
        return all(event.operation.kind in ("pool", "reshape", "dropout") for event in self.events)


@dataclass(slots=True, eq=False)
class Block:
    """Units between two boundaries; its name is that of its first anchor."""

    units: list[Unit] = field(default_factory=list)

    @property
    def anchors(self) -> list[Unit]:
        """The units with weights; the first unit if there are none."""
        return [unit for unit in self.units if unit.role == "anchor"] or self.units[:1]


def execution_from(recorder: Recorder) -> Execution:
    """Divide what was recorded into blocks.

    Args:
        recorder: after the model's forward.
    """
    root = recorder.root
    assert root is not None  # the recorder finished
    graph = _Graph(recorder, root)
    top, opened = root, {root}
    while True:
        units = [unit for event in top.events for unit in graph.units(event, top, opened)]
        blocks = graph.merge_branches(graph.group(units))
        if len(blocks) != 1 or not blocks[0].anchors[0].composite:
            break
        inner = next(f for f in _composites(top) if f.name == blocks[0].anchors[0].name)
        if inner in opened:
            break
        opened.add(inner)  # a wrapper around the model proper
    return graph.execution(blocks, root)


def _connections(model: nn.Module) -> list[nn.Module]:
    """Return what carries the signal between the blocks of a converted model, and is no block itself."""
    found: list[Any] = [m if isinstance(m, Connection) else getattr(m, "stream_output", None) for m in model.modules()]
    return [m for m in found if isinstance(m, nn.Module)]


class _Graph:
    """Questions about a recorded forward pass."""

    def __init__(self, recorder: Recorder, root: Frame) -> None:
        self.recorder = recorder
        self.root = root
        self._connected = {name for m in _connections(recorder.model) for name in recorder.parameters_in(m)}
        self.consumers: dict[int, list[Event]] = {}
        for event in root.walk():
            for number in event.operation.inputs:
                self.consumers.setdefault(number, []).append(event)
        seen = {id(f.module): f for f in _composites(root) if not isinstance(f.module, nn.Sequential)}
        self.repeated = Counter((_parent(f.name), type(f.module)) for f in seen.values())
        self._in_list = {
            f"{name}.{key}".lstrip(".")
            for name, module in recorder.model.named_modules()
            if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
            for key, _ in module.named_children()
        }

    def depends(self, number: int, source: int) -> bool:
        """Whether `number` was computed from `source`. Numbers grow with time, so the search stays between the two."""
        seen, pending = {number}, [number]
        while pending:
            current = pending.pop()
            if current == source:
                return True
            event = self.recorder.producers.get(current)
            for before in event.operation.inputs if event is not None else ():
                if before >= source and before not in seen:
                    seen.add(before)
                    pending.append(before)
        return False

    def is_repeated(self, frame: Frame) -> bool:
        """Whether this is one of several blocks of a class in a list."""
        return frame.name in self._in_list and self.repeated[_parent(frame.name), type(frame.module)] > 1

    def _entry(self, frame: Frame) -> int | None:
        floating = (n for n in frame.inputs if n in self.recorder.floating)
        return next(floating, frame.inputs[0] if frame.inputs else None)

    def is_branched(self, frame: Frame) -> bool:
        """Whether two paths from the frame's input meet in one of its own operations or in one of its children."""
        entry = self._entry(frame)
        if entry is None:
            return False
        made: set[int] = set()
        for event in frame.events:
            inputs = event.inputs if isinstance(event, Frame) else event.operation.inputs
            inputs = tuple(n for n in inputs if n in self.recorder.floating)
            if len(inputs) > 1 and any(n in made for n in inputs):
                paths = [n for n in inputs if self.depends(n, entry)]
                if len(paths) > 1 and any(n in made for n in paths):
                    return True
            if isinstance(event, Frame) or any(n in made for n in event.operation.inputs):
                made.update(event.outputs)
        return False

    def is_parallel(self, frame: Frame) -> bool:
        """Whether children with parameters follow one another without the one's output reaching the next."""
        given = (f for f in frame.frames() if not isinstance(f.module, nn.Embedding))  # side by side before a chain
        children = [f for f in given if self.recorder.parameters_in(f.module) and f.outputs]
        return any(
            not any(self.depends(n, output) for n in after.inputs for output in before.outputs[:1])
            for before, after in itertools.pairwise(children)
        )

    def is_small_branch(self, frame: Frame, parent: Frame) -> bool:
        """Whether the parent adds this call's result to something that the call itself started from."""
        leaves = [f for f in _frames(frame) if not f.frames()]
        if len(leaves) > 3 * _LARGEST_BRANCH or any(
            not isinstance(f.module, nn.Sequential) for f in _composites(frame)
        ):
            return False
        if sum(self._role(f) == "anchor" for f in leaves) > _LARGEST_BRANCH or frame.output is None:
            return False
        return any(
            event.frame is parent
            and event.operation.kind == "add"
            and any(
                self.depends(start, n) for n in event.operation.inputs for start in frame.inputs if n != frame.output
            )
            for event in self.consumers.get(frame.output, ())
        )

    def is_opened(self, frame: Frame, parent: Frame) -> bool:
        """Whether the boundaries inside a call are boundaries of the model."""
        if not frame.frames():
            return False
        if any(isinstance(f.module, Layer) for f in frame.frames()):  # a stack: its state may be several tensors
            return True
        if isinstance(frame.module, nn.Sequential) and not self.is_small_branch(frame, parent):
            return True
        if self.is_parallel(frame) or self.is_branched(frame) or isinstance(frame.module, nn.Sequential):
            return False
        return not self.is_repeated(frame) or any(self.is_repeated(f) for f in _composites(frame) if f is not frame)

    def units(self, event: Frame | Event, parent: Frame, opened: set[Frame]) -> Iterator[Unit]:
        """Yield the units of an event, opening containers."""
        if isinstance(event, Event):
            yield self._function(event)
        elif event in opened or self.is_opened(event, parent):
            for inner in event.events:
                yield from self.units(inner, event, opened)
        else:
            events = tuple(event.walk())
            made = {n for e in events for n in e.outputs}
            used = (n for e in events for n in e.operation.inputs if n not in made)
            names = [name for e in events for name in e.operation.parameters]
            names += self.recorder.parameters_in(event.module)
            inputs = tuple(dict.fromkeys((*event.inputs, *used)))
            yield Unit(
                self._role(event),
                event.name if event.call == 1 else f"{event.name}#{event.call}",
                type(event.module).__name__,
                bool(event.frames()),
                inputs,
                tuple(dict.fromkeys(n for n in (*event.outputs, *made) if n not in inputs)),
                events,
                tuple(dict.fromkeys(names)),
            )

    def _role(self, frame: Frame) -> Role:
        events = list(frame.walk())
        kinds = {e.operation.kind for e in events}
        if "loss" in kinds:
            return "loss"
        if not frame.frames() and ("norm" in type(frame.module).__name__.lower() or kinds == {"normalisation"}):
            return "norm"
        own = self.recorder.parameters_in(frame.module)
        if own and self._connected.issuperset(own):
            return "free"
        has = any(own.values()) or any(e.matrix for e in events)
        return "anchor" if has or (frame.frames() and own) else "free"

    def _function(self, event: Event) -> Unit:
        operation = event.operation
        role: Role = "free"
        if operation.kind == "loss":
            role = "loss"
        elif operation.kind == "normalisation":
            role = "norm"
        elif operation.kind in _PARAMETRISED and event.matrix and self._connected.isdisjoint(operation.parameters):
            role = "anchor"
        name = f"{operation.module}.{operation.name}".lstrip(".")
        outputs = tuple(n for n in event.outputs if n not in operation.inputs)
        return Unit(role, name, operation.name, False, operation.inputs, outputs, (event,), operation.parameters)

    def group(self, units: Iterable[Unit]) -> list[Block]:
        """Give every unit without weights to the block whose values it reads; what reads none starts the next block."""
        blocks: list[Block] = []
        leading: list[Unit] = []
        ended: set[int] = set()  # values that are a loss or made from one
        for unit in units:
            if unit.role == "loss" or any(n in ended for n in unit.inputs):
                ended.update(unit.outputs)
            elif unit.role == "anchor":
                if blocks and not leading and self._is_sibling(unit, blocks[-1]):
                    blocks[-1].units.append(unit)
                else:
                    leading = [*(self._give_back(blocks[-1], unit) if blocks else ()), *leading]
                    blocks.append(Block([*leading, unit]))
                    leading = []
            elif not blocks or _reads(unit, leading) or not _reads(unit, blocks[-1].units):
                leading.append(unit)
            elif unit.role == "norm" and not self._follows(unit, blocks[-1]):
                if self._is_shared(unit):  # the branch that a residual connection goes around starts with it
                    leading.append(unit)
                else:
                    blocks.append(Block([*leading, unit]))
                    leading = []
            else:
                blocks[-1].units.append(unit)
        if leading and not blocks:
            blocks.append(Block())
        if leading:
            blocks[-1].units.extend(leading)
        return blocks

    def _give_back(self, block: Block, anchor: Unit) -> list[Unit]:
        """Remove and return the units at the block's end that prepare the next block.

        These are what pools or reshapes the output of a composite block, and the start of a branch: from the first unit
        that reads a value which is read again behind the next anchor, as in `x + linear(relu(x))`.
        """
        begin = max((i for i, u in enumerate(block.units) if u.role == "anchor"), default=0) + 1
        end = len(block.units)
        while block.anchors[-1].composite and end > begin and block.units[end - 1].shapes_only:
            end -= 1
        last = max(anchor.outputs, default=-1)
        own = {n for u in block.units for n in u.outputs}
        for i in range(begin, end):
            readers = (e for n in block.units[i].inputs if n in own for e in self.consumers.get(n, ()))
            if any(max(e.outputs) > last for e in readers):
                end = i
                break
        block.units, rest = block.units[:end], block.units[end:]
        return rest

    def _is_sibling(self, unit: Unit, block: Block) -> bool:
        """Whether `unit` only stands beside the block's anchor: query, key, value; or embeddings that are added."""
        anchor = block.anchors[-1]
        if not unit.inputs or all(e.operation.kind == "embedding" for u in (unit, anchor) for e in u.events):
            return True
        shared = set(unit.inputs[:1]) & {n for a in block.anchors for n in a.inputs[:1]}
        return bool(shared) and not any(self.depends(n, out) for n in unit.inputs for out in anchor.outputs)

    def _is_shared(self, norm: Unit) -> bool:
        return any(e not in norm.events for n in norm.inputs[:1] for e in self.consumers.get(n, ()))

    def _follows(self, norm: Unit, block: Block) -> bool:
        """Whether a norm comes directly after the block's leaf, its input going nowhere else."""
        anchor = block.anchors[-1]
        if anchor.composite or not norm.inputs or self._is_shared(norm):
            return False
        return not any(e.operation.kind == "add" for unit in block.units for e in unit.events if unit is not anchor)

    def merge_branches(self, blocks: list[Block]) -> list[Block]:
        """Join the leaves of a branch whose result is added to what it started from, written out in a forward."""
        merged: list[Block] = []
        ends: list[int] = []  # the last value that each block made
        for block in blocks:
            merged.append(block)
            ends.append(max((n for u in block.units for n in u.outputs), default=-1))
            for unit in block.units:
                if unit.kind != "add" or len(unit.inputs) < 2:
                    continue
                source = min(unit.inputs)
                first = next((i for i, end in enumerate(ends) if end >= source), 0)
                start = first + 1 if source in {n for u in merged[first].units for n in u.outputs} else first
                joined = merged[start:]
                anchors = [a for b in joined for a in b.anchors]
                if len(joined) > 1 and len(anchors) <= _LARGEST_BRANCH and not any(a.composite for a in anchors):
                    merged[start:] = [Block([u for b in joined for u in b.units])]
                    ends[start:] = [ends[-1]]
        return merged

    def execution(self, blocks: list[Block], root: Frame) -> Execution:
        """Name the blocks, and find the tensor at each boundary."""
        if not any(unit.role in ("anchor", "norm") for block in blocks for unit in block.units):
            kind, events = type(root.module).__name__, tuple(root.walk())
            blocks = [Block([Unit("free", "(root)", kind, False, root.inputs, root.outputs, events, ())])]
        functional = [b for b in blocks if b.anchors[0].kind == b.anchors[0].name.rpartition(".")[2]]
        last_use = {n: i for i, block in enumerate(blocks) for u in block.units for n in u.inputs}
        last_use.update(dict.fromkeys(root.outputs, len(blocks)))
        sites, operations, input_of, output_of = [], {}, {}, {}
        previous: int | None = None
        taken: Counter[str] = Counter()
        for order, block in enumerate(blocks):
            anchor = block.anchors[0]
            taken[anchor.name] += 1
            name = anchor.name if taken[anchor.name] == 1 else f"{anchor.name}#{taken[anchor.name]}"
            output = self._boundary(block, order, last_use)
            parameters = dict.fromkeys(p for unit in block.units for p in unit.parameters)
            shape = self.recorder.shape_of.get(output, ())
            sites.append(Site(name, order, anchor.kind, shape, tuple(parameters)))
            operations[name] = tuple(_unique(e.operation for u in block.units for e in u.events))
            input_of[name] = self._input(block, previous)
            output_of[name] = previous = output
        note = ""
        if functional and len(functional) == len(blocks):
            note = "no submodule was called: the boundaries are the calls of functions that read a weight"
        elif blocks[0].anchors[0].name == "(root)":
            note = "nothing with a weight was found inside: the model as a whole is one block"
        return Execution(tuple(sites), operations, input_of, output_of, self.recorder.shape_of, note)

    def _boundary(self, block: Block, order: int, last_use: dict[int, int]) -> int:
        """Return the last value made from the block's anchors that something after the block reads."""
        made: set[int] = set()
        best = fallback = -1
        for unit in block.units:
            own = unit.role == "anchor" or unit is block.units[0]
            if not own and (unit.kind in _READ_SHAPES or not any(n in made for n in unit.inputs)):
                continue
            made.update(unit.outputs)
            found = [n for n in unit.outputs if n in self.recorder.floating]
            if found:
                fallback = found[0]
            used = [n for n in found if last_use.get(n, -1) > order]
            best = used[0] if used else best
        return best if best >= 0 else fallback

    def _input(self, block: Block, previous: int | None) -> int:
        made = {n for u in block.units for n in u.outputs}
        outside = [n for u in block.units for n in u.inputs if n not in made]
        if previous in outside:
            return previous if previous is not None else -1
        return next((n for n in outside if n in self.recorder.floating), outside[0] if outside else -1)


def _reads(unit: Unit, before: Iterable[Unit]) -> bool:
    return any(n in other.outputs for other in before for n in unit.inputs)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _frames(frame: Frame) -> Iterator[Frame]:
    yield frame
    for inner in frame.frames():
        yield from _frames(inner)


def _composites(frame: Frame) -> Iterator[Frame]:
    return (f for f in _frames(frame) if f.frames())


def _unique(operations: Iterable[Operation]) -> Iterator[Operation]:
    seen: set[int] = set()
    for operation in operations:
        if id(operation) not in seen:
            seen.add(id(operation))
            yield operation
