"""Operators against the time of a copy: how near to the limit of memory each comes, forward and backward.

An operator is checked first, values and gradients against its reference in float64. Then all programs of a case, and a
copy that reads and writes as many bytes as the operator must at least move, run in turns over inputs that no cache
holds (or over 64 of small ones, whose bytes together a row says): forward, backward and both. A row's ratio is the
program's time over that copy's: 1 is the limit, 1.18 is 85 % of it, 1.33 is 75 %.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.measure import Row, ratio_of

__all__ = ["Case", "Operator", "compiled", "hyper_inputs", "read_inputs", "reading", "rows"]

Operator = Callable[..., Sequence[Tensor]]
"""Takes a case's inputs and returns tensors of which each has a gradient, at least by one input."""

_TARGETS: Final = {"forward": 1 / 0.85, "backward": 1 / 0.75}  # on a GPU
_TOGETHER: Final = {"cuda": 2**29, "cpu": 2**26}  # bytes of the inputs in turn: several times the largest cache
_SETS: Final = 64  # at most, as each keeps a graph while the way back is timed
_WHILE: Final = {"cuda": 0.004, "cpu": 0.05}  # seconds that one round of one program takes at least
_AHEAD: Final = 2 * 10**7  # cycles that a GPU sleeps while the calls are queued: launching is no part of the time
_REPETITIONS: Final = 11


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operator at one size.

    Attributes:
        operator: its name.
        size: what the row says of it, as tokens, streams and width.
        make: makes one set of inputs in float32 on the default device, leaves; those that ask for gradients get them.
        programs: what is compared, by name; `reference` is what the others are checked against.
        forward: least number of elements that are moved, read and written, in the type of the inputs.
        backward: the same of the way back.
        tolerance: of the relative error of each result and gradient, in units of the precision of float32. Of inputs
            of 16 bits it is four of theirs: what is computed in float32 is rounded once, or twice on its way.
        wide: indices of inputs that stay in float32.
    """

    operator: str
    size: Mapping[str, int]
    make: Callable[[], Sequence[Tensor]]
    programs: Mapping[str, Operator]
    forward: int
    backward: int
    tolerance: float = 8.0
    wide: frozenset[int] = field(default_factory=frozenset)

    def limit(self, dtype: torch.dtype, inputs: int) -> float:
        """Return what the relative error may be.

        Args:
            dtype: of the inputs that are not wide.
            inputs: how many there are.
        """
        if dtype.itemsize < 4 and len(self.wide) < inputs and self.tolerance < math.inf:
            return 4 * torch.finfo(dtype).eps
        return self.tolerance * torch.finfo(torch.float32).eps

    @property
    def own(self) -> bool:
        """Whether a program of levada's is among them."""
        return any(map(_is_own, self.programs))


def compiled(function: Operator) -> Operator:
    """Return it compiled whole, for the sizes that come."""
    torch._functorch.config.donated_buffer = False  # the way back is timed several times over one way there
    return torch.compile(function, fullgraph=True, dynamic=False)


def read_inputs(tokens: int, n: int, width: int, mixes: bool) -> Sequence[Tensor]:
    """Return streams, and what decides how they are read: projection, scale and bias."""
    rows = 2 * n + n * n * mixes
    tensors = [
        torch.randn(tokens, n, width),
        torch.randn(rows, n * width) * (n * width) ** -0.5,
        torch.rand(2 + mixes) + 0.5,
        torch.randn(rows),
    ]
    return [x.requires_grad_() for x in tensors]


def hyper_inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    """Return streams, and the parameters of hyper-connections that read them."""
    tensors = [
        torch.randn(tokens, n, width),
        torch.rand(n),
        torch.eye(n) + 0.1 * torch.randn(n, n),
        torch.rand(n) + 0.5,
        torch.randn(n + 2, width) * width**-0.5,
        torch.full((1,), 0.5),
        torch.full((1,), 0.5),
        torch.rand(width) + 0.5,
        0.1 * torch.randn(width),
    ]
    return [x.requires_grad_() for x in tensors]


def reading(
    operator: str,
    size: tuple[int, int, int],
    make: Callable[..., Sequence[Tensor]],
    plain: Operator,
    ours: Operator,
    *,
    parameters: int,
    tolerance: float = 32.0,
) -> Case:
    """Return a case of reading streams: what a branch reads, and the streams, by which a gradient arrives as well.

    Args:
        operator: its name.
        size: tokens, streams and width.
        make: makes the inputs of that size, streams first.
        plain: what one writes; it hands the streams on.
        ours: the operation.
        parameters: how many inputs there are behind the streams, which stay in float32.
        tolerance: as in `Case`.
    """
    tokens, n, width = size
    return Case(
        operator=operator,
        size={"tokens": tokens, "streams": n, "width": width},
        make=functools.partial(make, tokens, n, width),
        programs={"reference": plain, "compiled reference": compiled(plain), "levada": ours},
        forward=(n + 1) * tokens * width,
        backward=(3 * n + 1) * tokens * width,
        tolerance=tolerance,
        wide=frozenset(range(1, parameters + 1)),
    )


def rows(case: Case, device: torch.device, dtype: torch.dtype, repetitions: int = _REPETITIONS) -> Iterator[Row]:
    """Check all programs of a case, time them in turns, and yield a row for each program and direction.

    A rival that does not run here, or is wrong, is told in a line and left out: it is no reason to stop. Of a case
    whose reference is a package's that is not installed one line says so, and there are no rows.

    Raises:
        AssertionError: if an operator of levada's is wrong: nothing is timed then.
    """
    first = _inputs(case, device, dtype)
    sets = [first]
    size = sum(x.numel() * x.element_size() for x in first)
    sets += [_inputs(case, device, dtype) for _ in range(min(math.ceil(_TOGETHER[device.type] / size), _SETS) - 1)]
    try:
        truth = _values(case.programs["reference"], [_leaf(x.detach().double(), x) for x in first])
    except Exception as error:  # a package's own layer is what its case compares with
        if case.own:
            raise
        missing = isinstance(error, ImportError)
        why = f"it needs the package {error.name}, which is not installed" if missing else f"it raises {_told(error)}"
        print(f"{case.operator}: left out, as {why}")
        return
    errors = {name: _error(case, name, first, truth, dtype) for name in case.programs}
    good = {name: program for name, program in case.programs.items() if isinstance(errors[name], float)}
    for name in case.programs.keys() - good.keys():
        print(f"{case.operator} {name}: {errors[name]}")
    ways = {"forward": case.forward}
    if case.backward:  # none of an addition, whose gradients are what comes
        ways |= {"backward": case.backward, "both": case.forward + case.backward}
    for way, elements in ways.items():
        copy = _copy(elements, sets, first[0])
        calls = {name: _calls(program, sets, way) for name, program in good.items()}
        taken = _in_turns({"copy": copy, **calls}, device, repetitions)
        for name in good:
            ratios = [own / base for own, base in zip(taken[name], taken["copy"], strict=True)]
            size_told = " x ".join(str(x) for x in case.size.values())
            middle = sorted(taken[name])[repetitions // 2]
            yield Row(
                benchmark="ops",
                case=f"{case.operator} {way} {size_told} {str(dtype).removeprefix('torch.')}: {name}",
                baseline="a copy of the least bytes",
                candidate=name,
                ratio=ratio_of(ratios),
                repetitions=repetitions,
                target=_TARGETS.get(way) if name == "levada" and device.type == "cuda" else None,
                extra={
                    **case.size,
                    "error": errors[name],
                    "bytes": elements * first[0].element_size(),
                    "in_turn": size * len(sets),
                    **({"gigabytes_per_second": round(elements * first[0].element_size() / middle / 1e9)}
                       if device.type == "cuda" else {}),
                },
            )  # fmt: skip


def _is_own(program: str) -> bool:
    return program.startswith("levada")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _leaf(x: Tensor, like: Tensor) -> Tensor:
    return x.requires_grad_(like.requires_grad)


def _inputs(case: Case, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    with device:
        made = case.make()
    return [_leaf(x.detach().to(device, torch.float32 if i in case.wide else dtype), x) for i, x in enumerate(made)]


def _cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(y.shape, generator=generator).to(y) for y in outputs]


def _values(program: Operator, inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs = list(program(*inputs))
    leaves = [x for x in inputs if x.requires_grad]
    gradients = torch.autograd.grad(outputs, leaves, _cotangents(outputs)) if leaves else ()
    return [*(y.detach() for y in outputs), *gradients]


def _error(case: Case, name: str, inputs: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> float | str:
    """Return the largest relative error of a result or gradient, or why the program is left out."""
    try:
        got = _values(case.programs[name], inputs)
    except Exception as error:
        if _is_own(name) or (case.own and name == "reference"):
            raise
        return f"does not run here: {_told(error)}"
    errors = [(a.double() - b).norm() / b.norm() for a, b in zip(got, truth, strict=True)]
    largest = float(torch.stack(errors).max())  # NaN, if one of them is
    limit = case.limit(dtype, len(inputs))
    if not largest <= limit:
        message = f"relative error {largest:.2e}, above {limit:.2e}"
        if _is_own(name):
            raise AssertionError(f"{case.operator}, {name}: {message}")
        return message
    return largest


def _copy(elements: int, sets: Sequence[Sequence[Tensor]], like: Tensor) -> list[Callable[[], object]]:
    """Return copies, each of which reads half of the elements and writes the other half."""
    count = max(2, math.ceil(_TOGETHER[like.device.type] / (elements * like.element_size())))
    count = min(count, len(sets) + 1)
    pairs = [(like.new_ones(elements // 2), like.new_empty(elements // 2)) for _ in range(count)]
    return [lambda a=a, b=b: b.copy_(a) for a, b in pairs]  # type: ignore[misc]


def _calls(program: Operator, sets: Sequence[Sequence[Tensor]], way: str) -> list[Callable[[], object]]:
    """Return calls over each set of inputs; of the way back, with the way there done."""
    if way == "forward":
        return [lambda inputs=inputs: program(*inputs) for inputs in sets]  # type: ignore[misc]
    calls: list[Callable[[], object]] = []
    if way == "both":
        by = _cotangents(program(*sets[0]))  # of equal shapes for all
        for inputs in sets:

            def there_and_back(inputs: Any = inputs) -> object:
                leaves = [x for x in inputs if x.requires_grad]
                return torch.autograd.grad(list(program(*inputs)), leaves, by)

            calls.append(there_and_back)
        return calls
    for inputs in sets:
        outputs = list(program(*inputs))
        leaves = [x for x in inputs if x.requires_grad]
        by = _cotangents(outputs)

        def back(outputs: Any = outputs, leaves: Any = leaves, by: Any = by) -> object:
            return torch.autograd.grad(outputs, leaves, by, retain_graph=True)

        calls.append(back)
    return calls


def _in_turns(
    programs: Mapping[str, Sequence[Callable[[], object]]], device: torch.device, repetitions: int
) -> dict[str, list[float]]:
    """Return the seconds of one call of each program in each round."""
    time_of = _gpu_seconds if device.type == "cuda" else _seconds
    counts = {}
    for name, calls in programs.items():
        for call in calls:
            call()
        counts[name] = max(len(calls), math.ceil(_WHILE[device.type] / max(time_of(calls, len(calls)), 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    for i in range(repetitions):
        for name in names if i % 2 else reversed(names):
            taken[name].append(time_of(programs[name], counts[name]))
    return taken


def _seconds(calls: Sequence[Callable[[], object]], count: int) -> float:
    # One thread is timed by the processor's time that it had: a shared machine takes it away at any moment.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for i in range(count):
        calls[i % len(calls)]()
    return (clock() - start) / count


def _gpu_seconds(calls: Sequence[Callable[[], object]], count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_AHEAD)  # type: ignore[no-untyped-call]
    start.record()
    for i in range(count):
        calls[i % len(calls)]()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / count
