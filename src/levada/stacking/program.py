"""Python code that runs a recorded layer again and again, without modules and without autograd."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from levada.stacking.recording import Recording, Step, Value, numbers

__all__ = ["Program", "program_of"]


@dataclass(frozen=True, slots=True)
class Program:
    """Loops over layers. A row is what one layer reads beside the state: parameters, buffers, views of them.

    Attributes:
        prepare: `(*parameters, *buffers) -> row`.
        forward: `(rows, *states) -> states`.
        forward_keeping: `(rows, keep, *states) -> states`; `keep` is called with what the backward pass needs.
        backward: `(rows, take, slices, *cotangents) -> cotangents`; rows and slices from the last layer to the first,
            `take` returns what was kept, and the parameters' gradients are written into the slices.
        shapes: for each parameter the shape of its slice of memory as it is written, whether that is transposed;
            None for what gets no gradient.
        draws: whether random numbers are drawn.
    """

    prepare: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., tuple[Tensor, ...]]
    forward_keeping: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]
    shapes: tuple[tuple[torch.Size, bool] | None, ...]
    draws: bool


def program_of(recording: Recording, num_parameters: int) -> Program:
    """Return the program of a recorded layer.

    Args:
        recording: of the layer.
        num_parameters: how many of its constants are parameters.
    """
    own = len(recording.states)
    cotangents = recording.gradients[:own]
    targets = recording.gradients[own : own + num_parameters]
    slices = _Slices(recording, targets)
    ends = {g for g in cotangents if g is not None} | set(slices.copied)
    backward = _alive(slices.steps, ends, also=slices.outs)
    read_later = {n for step in backward for n in step.reads()} | ends
    forward = _alive(recording.forward, {*recording.outputs, *read_later})
    hoisted = _hoisted(forward, recording.constants)
    row = [*recording.constants, *(n for step in hoisted for n in sorted(numbers(step.outputs)))]
    forward = [step for step in forward if not any(step is h for h in hoisted)]
    made = {n for step in forward for n in numbers(step.outputs)} | set(recording.states)
    kept = sorted((read_later & made) - set(row))
    code = _Code(recording)
    body = code.body(forward, {*recording.outputs, *kept})
    advance, states, start = (
        _assign(recording.states, recording.outputs),
        _names(recording.states),
        f"for {_tuple(row)}",
    )
    last = f"return {_tuple(recording.states)}"
    copies = [f"o{i}.copy_(v{n})" for i, n in slices.copies]
    following = [
        f"v{g}" if g is not None else f"{code.constant(torch.zeros_like)}(v{c})"
        for g, c in zip(cotangents, recording.cotangents, strict=False)
    ]
    back = [
        f"{_tuple(kept)} = take()",
        *code.body(backward, ends, slices.outs),
        *copies,
        f"{_tuple(recording.cotangents)} = ({''.join(f'{g}, ' for g in following)})",
    ]
    held = "".join(f"o{i}, " for i in range(len(slices.shapes)))
    return Program(
        prepare=code.function(_names(recording.constants), [*code.body(hoisted, set(row)), f"return {_tuple(row)}"]),
        forward=code.function(f"rows, {states}", [f"{start} in rows:", *_inside([*body, advance]), last]),
        forward_keeping=code.function(
            f"rows, keep, {states}",
            [f"{start} in rows:", *_inside([*body, f"keep({_tuple(kept)})", advance]), last],
        ),
        backward=code.function(
            f"rows, take, slices, {_names(recording.cotangents)}",
            [f"{start}, ({held}) in zip(rows, slices):", *_inside(back), f"return {_tuple(recording.cotangents)}"],
        ),
        shapes=tuple(slices.shapes.get(i) for i in range(num_parameters)),
        draws=any(step.draws for step in (*forward, *backward)),
    )


class _Slices:
    """How the parameters' gradients are written into their slices: by the operation that makes them, or as copies."""

    def __init__(self, recording: Recording, targets: Sequence[int | None]) -> None:
        self.steps = _alive(recording.backward, [g for g in recording.gradients if g is not None])
        self.outs: dict[int, str] = {}  # by the step that writes
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
            while producer is not None and uses[number] == 1 and _view_name(producer) in ("t", "view"):
                views.append(producer)
                transposed ^= _view_name(producer) == "t"
                number = next(iter(producer.reads()))
                producer = self._producer(number)
            direct = len(views) < 2 and producer is not None and uses[number] == 1
            if direct and producer is not None and producer.operator in _WRITERS:
                self.outs[id(producer)] = f"o{place}"
                self.steps = [step for step in self.steps if all(step is not view for view in views)]
                self.shapes[i] = recording.layouts[number][0], transposed
            else:
                self.copies.append((place, target))
                self.shapes[i] = recording.layouts[target][0], False
        self.copied = {number for _, number in self.copies}

    def _producer(self, number: int) -> Step | None:
        return next((step for step in self.steps if number in numbers(step.outputs)), None)


_ATEN = torch.ops.aten
# Operations that may write into a slice, and what they are called as.
_WRITERS: dict[Any, Callable[..., Any]] = {_ATEN.mm.default: torch.mm, _ATEN.sum.dim_IntList: torch.sum}
# Operations of which any argument may be written over.
_IN_PLACE: dict[Any, Callable[..., Any]] = {
    _ATEN.relu.default: torch.relu_,
    _ATEN.tanh.default: torch.tanh_,
    _ATEN.sigmoid.default: torch.sigmoid_,
    _ATEN.add.Tensor: torch.Tensor.add_,
    _ATEN.mul.Tensor: torch.Tensor.mul_,
}


def _view_name(step: Step) -> str:
    return {_ATEN.t.default: "t", _ATEN.view.default: "view"}.get(step.operator, "")


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


class _Code:
    """Lines of Python, and what their names stand for."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.globals: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def constant(self, value: Any) -> str:
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if id(value) not in self._names:
            self._names[id(value)] = f"c{len(self._names)}"
            self.globals[self._names[id(value)]] = value
        return self._names[id(value)]

    def body(self, steps: Sequence[Step], kept: Iterable[int], outs: dict[int, str] | None = None) -> list[str]:
        """Return a line for each step; what nobody reads any more is freed at once, if it is not kept."""
        lines, kept, outs = [], set(kept), outs or {}
        last = {n: i for i, step in enumerate(steps) for n in step.reads()}
        uses = Counter(n for step in steps for n in step.reads())
        owned = {n for step in steps if not (step.views or step.writes) for n in numbers(step.outputs)}
        made: set[int] = set()
        for i, step in enumerate(steps):
            given = [self._told(a) for a in step.args] + [f"{k}={self._told(a)}" for k, a in step.kwargs.items()]
            if id(step) in outs:
                lines.append(f"{self.constant(_WRITERS[step.operator])}({', '.join(given)}, out={outs[id(step)]})")
            else:
                new = numbers(step.outputs)
                used = {n for n in new if n in last or n in kept}
                spent = {n for n in step.reads() & owned if uses[n] == 1 and n not in kept}
                call = self._in_place(step, spent) or f"{self.constant(_quick(step.operator))}({', '.join(given)})"
                lines.append(f"{_target(step.outputs, used)} = {call}" if used else call)
                made |= used
            gone = sorted(n for n in step.reads() if n in made and n not in kept and last[n] == i)
            lines += [f"del {_names(gone)}"] if gone else []
        return lines

    def _in_place(self, step: Step, spent: set[int]) -> str:
        """Return a call that writes over what nobody else reads; "" if there is none. It computes the same."""
        operator, values = _IN_PLACE.get(step.operator), [a for a in step.args if isinstance(a, Value)]
        if operator is None or step.kwargs or len(values) != len(step.args):
            return ""
        result = step.outputs.number
        for value in values:
            if value.number in spent and self.recording.layouts[value.number] == self.recording.layouts[result]:
                others = "".join(f", v{v.number}" for v in values if v is not value)
                return f"{self.constant(operator)}(v{value.number}{others})"
        return ""

    def _told(self, argument: Any) -> str:
        if isinstance(argument, Value):
            return f"v{argument.number}"
        if isinstance(argument, list | tuple):
            inside = ", ".join(self._told(a) for a in argument)
            return f"[{inside}]" if isinstance(argument, list) else f"({inside},)"
        return self.constant(argument)

    def function(self, parameters: str, lines: Sequence[str]) -> Callable[..., Any]:
        """Return a function of these lines."""
        text = "\n".join([f"def layers({parameters}):", *_inside(lines)])
        made: dict[str, Any] = {}
        exec(compile(text, "<layers of a stack>", "exec"), self.globals, made)
        return made["layers"]  # type: ignore[no-any-return]


@functools.cache
def _quick(operator: Any) -> Callable[..., Any]:
    """Return the binding of an operation that costs least to call: the generic one takes twice as long."""
    namespace, _, name = operator._schema.name.partition("::")
    if namespace != "aten":
        return operator  # type: ignore[no-any-return]
    for home in (torch._C._VariableFunctions, torch._C.TensorBase):
        if hasattr(home, name):
            return getattr(home, name)  # type: ignore[no-any-return]
    return operator  # type: ignore[no-any-return]


def _target(outputs: Any, used: set[int]) -> str:
    if isinstance(outputs, Value):
        return f"v{outputs.number}" if outputs.number in used else "_"
    if isinstance(outputs, list | tuple):
        return f"({''.join(f'{_target(o, used)}, ' for o in outputs)})"
    return "_"


def _names(values: Iterable[int]) -> str:
    return ", ".join(f"v{n}" for n in values)


def _tuple(values: Sequence[int]) -> str:
    return f"({''.join(f'v{n}, ' for n in values)})"


def _assign(to: Sequence[int], values: Sequence[int]) -> str:
    return f"{_tuple(to)} = {_tuple(values)}"


def _inside(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]
