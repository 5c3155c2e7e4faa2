"""Lines of Python that run recorded operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

from levada.stacking.chunks import Chunked, Held, passed_on
from levada.stacking.operators import IN_PLACE, IN_PLACE_OF_FIRST, WRITERS, quick, writer
from levada.stacking.recording import Recording, Step, Value, numbers

__all__ = ["Source", "inside", "listed", "loop", "tuple_of"]


@final
class Source:
    """Lines of Python, and what their names stand for.

    `v3` is a value of the layer at hand, `h3` that of a chunk of layers and `t3` the layer's part of it, `o1` and `w1`
    memory for the gradient of a parameter, of a layer and of a chunk, and `c2` a constant.

    Args:
        recording: of the layer.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.globals: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def constant(self, value: Any) -> str:
        """Return a name for a value, or what it is written as.

        Args:
            value: of any kind.
        """
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        if id(value) not in self._names:
            self._names[id(value)] = f"c{len(self._names)}"
            self.globals[self._names[id(value)]] = value
        return self._names[id(value)]

    def body(
        self,
        steps: Sequence[Step],
        kept: Iterable[int],
        outs: dict[int, str] | None = None,
        held: Sequence[Held] = (),
        spare: Iterable[int] = (),
    ) -> list[str]:
        """Return a line for each step; what nobody reads any more is freed at once, if it is not kept.

        Args:
            steps: in their order.
            kept: values that are wanted afterwards.
            outs: by the steps that write gradients, where.
            held: values that are written into a chunk's tensors.
            spare: values from outside that may be written over.
        """
        lines, kept, outs = [], {*kept, *(h.written for h in held)}, outs or {}
        last = {n: i for i, step in enumerate(steps) for n in step.reads()}
        over = self.written_over(steps, kept, spare)
        told, copied = self._told_where(steps, over, held)
        made: set[int] = set()
        for i, step in enumerate(steps):
            given = [self._text(a) for a in step.args] + [f"{k}={self._text(a)}" for k, a in step.kwargs.items()]
            if id(step) in outs:
                lines.append(f"{self.constant(WRITERS[step.operator])}({', '.join(given)}, out={outs[id(step)]})")
            else:
                new = numbers(step.outputs)
                used = {n for n in new if n in last or n in kept}
                if id(step) in told:
                    function, name = told[id(step)][0]
                    call = f"{self.constant(function)}({', '.join(given)}, {name}={told[id(step)][1]})"
                elif id(step) in over:
                    first = over[id(step)]
                    others = "".join(f", {a}" for a in given if a != f"v{first}")
                    call = f"{self.constant((IN_PLACE | IN_PLACE_OF_FIRST)[step.operator])}(v{first}{others})"
                else:
                    call = f"{self.constant(quick(step.operator))}({', '.join(given)})"
                lines.append(f"{_target(step.outputs, used)} = {call}" if used else call)
                lines += [f"v{n} = {copied[n]}.copy_(v{n})" for n in new if n in copied]
                made |= used
            gone = sorted(n for n in step.reads() if n in made and n not in kept and last[n] == i)
            lines += [f"del {listed(gone)}"] if gone else []
        return lines

    def written_over(self, steps: Sequence[Step], kept: set[int], spare: Iterable[int]) -> dict[int, int]:
        """Return what steps may write over, by the step: nobody reads it later, and they compute the same.

        Args:
            steps: in their order.
            kept: values that are wanted afterwards.
            spare: values from outside that may be written over.
        """
        readers: dict[int, list[Step]] = {}
        for step in steps:
            for n in step.reads():
                readers.setdefault(n, []).append(step)
        owned = {n for step in steps if not (step.views or step.writes) for n in numbers(step.outputs)} | {*spare}
        layouts, over = self.recording.layouts, {}
        for step in steps:
            values = [a for a in step.args if isinstance(a, Value)]
            if step.kwargs or len(values) != len(step.args):
                continue
            choice = values if step.operator in IN_PLACE else values[: step.operator in IN_PLACE_OF_FIRST]
            for number in (v.number for v in choice):
                spent = number in owned and number not in kept and readers[number][-1] is step
                alone = values.count(Value(number)) == 1 and not any(r.views for r in readers[number])
                if spent and alone and layouts[number] == layouts[step.outputs.number]:
                    over[id(step)] = number
                    break
        return over

    def _told_where(
        self, steps: Sequence[Step], over: dict[int, int], held: Sequence[Held]
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """Return what writes into a chunk's tensors, by the step: with which function and where; and what is copied."""
        producers = {n: step for step in steps for n in numbers(step.outputs)}
        told: dict[int, Any] = {}
        copied: dict[int, str] = {}
        for value in held:
            step: Step | None = producers[value.written]
            while step is not None and id(step) in over:
                step = producers.get(over[id(step)])  # None of what comes from outside
            function = None if step is None else writer(step.operator)
            if step is None or function is None or id(step) in told:
                copied[value.written] = f"t{value.number}"
            else:
                told[id(step)] = function, f"t{value.number}"
        return told, copied

    def begin(self, held: Sequence[Held], passed: Sequence[int], *, backward: bool) -> list[str]:
        """Return what makes the tensors of a chunk, before its layers run.

        Args:
            held: the values in them.
            passed: values that one layer gives to the next.
            backward: whether the last layer runs first.
        """
        lines, order = [], "[::-1]" if backward else ""
        for number in (h.number for h in held):
            (*shape,), _, dtype, device = self.recording.layouts[number]
            kind = f"{self._text(tuple(shape))}, {self.constant(dtype)}, {self.constant(device)}"
            lines += [f"r{number} = rooms.take(len(rows), {kind})", f"h{number}, t{number}, _ = r{number}"]
            if number in passed:
                lines.append(f"v{number}, t{number} = {self.constant(passed_on)}(t{number}{order}, v{number})")
            elif backward:
                lines.append(f"t{number} = t{number}{order}")
        return lines

    def at_once(self, chunk: Chunked) -> list[str]:
        """Return what is done for a chunk of layers, after they have run.

        Args:
            chunk: what that is.
        """
        targets = "".join(f"w{place}, " for place in chunk.places)
        calls = [f"{self.constant(function)}({text})" for function, text in chunk.calls]
        return [f"({targets}) = whole", *calls, *(f"rooms.give(r{h.number})" for h in chunk.made)]

    def _text(self, argument: Any) -> str:
        if isinstance(argument, Value):
            return f"v{argument.number}"
        if isinstance(argument, list | tuple):
            items = "".join(f"{self._text(a)}, " for a in argument)  # of none, as a scalar's shape, no comma
            return f"[{items}]" if isinstance(argument, list) else f"({items})"
        return self.constant(argument)

    def function(self, parameters: str, lines: Sequence[str]) -> Callable[..., Any]:
        """Return a function of these lines.

        Args:
            parameters: their names.
            lines: of its body.
        """
        text = "\n".join([f"def layers({parameters}):", *inside(lines)])
        made: dict[str, Any] = {}
        exec(compile(text, "<layers of a stack>", "exec"), self.globals, made)
        return made["layers"]  # type: ignore[no-any-return]


def _target(outputs: Any, used: set[int]) -> str:
    if isinstance(outputs, Value):
        return f"v{outputs.number}" if outputs.number in used else "_"
    if isinstance(outputs, list | tuple):
        return f"({''.join(f'{_target(o, used)}, ' for o in outputs)})"
    return "_"


def listed(values: Iterable[int]) -> str:
    """Return the names of values, with commas between them.

    Args:
        values: by number.
    """
    return ", ".join(f"v{n}" for n in values)


def tuple_of(values: Iterable[int], letter: str = "v") -> str:
    """Return a tuple of names.

    Args:
        values: by number.
        letter: with which the names begin.
    """
    return f"({''.join(f'{letter}{n}, ' for n in values)})"


def loop(over: dict[str, str]) -> str:
    """Return the line that begins a loop over layers.

    Args:
        over: what is taken of what.
    """
    if len(over) == 1:
        return "".join(f"for {name} in {source}:" for name, source in over.items())
    return f"for {', '.join(over)} in zip({', '.join(over.values())}):"


def inside(lines: Iterable[str]) -> list[str]:
    """Return the lines, indented.

    Args:
        lines: of a block.
    """
    return [f"    {line}" for line in lines]
