"""Operators against the time of a copy: how near to the limit of memory each comes, forward and backward.

An operator is checked first, values and gradients against its reference in float64. Then all programs of a case, and a
copy that reads and writes as many bytes as the operator must at least move, run in turns over inputs that no cache
holds. A row's ratio is the program's time over that copy's: 1 is the limit, 1.18 is 85 % of it, 1.33 is 75 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks.measure import Row, ratio_of

__all__ = ["Case", "Operator", "compiled", "read_inputs", "rows"]

Operator = Callable[..., Sequence[Tensor]]
"""Takes a case's inputs and returns tensors of which each has a gradient, at least by one input."""

_TARGETS: Final = {"forward": 1 / 0.85, "backward": 1 / 0.75}  # on a GPU
_TOGETHER: Final = {"cuda": 2**29, "cpu": 2**26}  # bytes of the inputs in turn: several times the largest cache
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
        tolerance: of the relative error of each result and gradient, in units of the type's precision.
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


def rows(case: Case, device: torch.device, dtype: torch.dtype, repetitions: int = _REPETITIONS) -> Iterator[Row]:
    """Check all programs of a case, time them in turns, and yield a row for each program and direction.

    A program that fails is told in a row without a ratio: a rival that does not run here is no reason to stop. Of a
    case whose reference is a package's that is not installed one line says so, and there are no rows.
    """
    first = _inputs(case, device, dtype)
    sets = [first]
    size = sum(x.numel() * x.element_size() for x in first)
    sets += [_inputs(case, device, dtype) for _ in range(min(math.ceil(_TOGETHER[device.type] / size), 64) - 1)]
    try:
        truth = _values(case.programs["reference"], [_leaf(x.detach().double(), x) for x in first])
    except ImportError as error:  # a package's own layer is what its case compares with
        print(f"{case.operator}: left out, as it needs the package {error.name}, which is not installed")
        return
    errors = {name: _error(case, program, first, truth, dtype) for name, program in case.programs.items()}
    good = {name: program for name, program in case.programs.items() if isinstance(errors[name], float)}
    for name in case.programs.keys() - good.keys():
        print(f"{case.operator} {name}: {errors[name]}")
    for way, elements in (("forward", case.forward), ("backward", case.backward)):
        if not elements:  # nothing moves
            continue
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
                target=_TARGETS[way] if name == "levada" and device.type == "cuda" else None,
                extra={
                    **case.size,
                    "error": errors[name],
                    "bytes": elements * first[0].element_size(),
                    **({"gigabytes_per_second": round(elements * first[0].element_size() / middle / 1e9)}
                       if device.type == "cuda" else {}),
                },
            )  # fmt: skip


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
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, _cotangents(outputs))]


def _error(
    case: Case, program: Operator, inputs: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype
) -> float | str:
    """Return the largest relative error of a result or gradient, or why the program is left out."""
    try:
        got = _values(program, inputs)
    except Exception as error:
        if case.programs["reference"] is program:
            raise
        return f"does not run here: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    largest = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, truth, strict=True))
    limit = case.tolerance * torch.finfo(dtype).eps
    if not largest <= limit:
        message = f"relative error {largest:.2e}, above {limit:.2e}"
        if program is case.programs.get("levada"):
            raise AssertionError(f"{case.operator}: {message}")
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
