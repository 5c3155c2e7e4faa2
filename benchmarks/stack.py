"""Stacks: against the loop by hand, compiled by region, checkpointed, and 10,000 layers deep.

python -m benchmarks.stack [--quick]
"""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from benchmarks.measure import Program, Row, compare_bytes, compare_times, main, ratio_of
from levada import Residual, Stack


class ByHand(nn.Module):
    """What one writes without a library."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


def branch(dim: int, depth: int) -> nn.Module:
    linear = nn.Linear(dim, dim)
    with torch.no_grad():
        linear.weight.mul_(depth**-0.5)
    return nn.Sequential(linear, nn.ReLU())


def step(network: nn.Module, x: Tensor, *, reuse_gradients: bool = False) -> Program:
    """Forward and backward; `reuse_gradients` keeps the gradients' memory, so that only activations are counted."""
    parameters = list(network.parameters())

    def run() -> list[Tensor]:
        for parameter in parameters:
            if not reuse_gradients:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()
        y = network(x)
        y.sum().backward()
        return [y.detach(), *(p.grad for p in parameters if p.grad is not None)]

    return run


def by_hand(depth: int, dim: int, rows: int, repetitions: int) -> Iterator[Row]:
    branches = [branch(dim, depth) for _ in range(depth)]
    x = torch.randn(rows, dim)
    programs = step(ByHand(branches), x), step(Stack(branches, Residual, dim=dim), x)
    yield Row(
        benchmark="stack",
        case=f"residual, {depth} layers of {dim}, {rows} rows",
        baseline="loop by hand",
        candidate="Stack of Residual",
        target=1.03,
        **compare_times(*programs, repetitions=repetitions),
    )


def compile_time(depths: tuple[int, ...], repetitions: int, backend: str) -> Iterator[Row]:
    """Time from a new stack to the end of its first step, with empty caches, divided by the shallowest one's."""

    def first_step(depth: int) -> tuple[float, int]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        network = Stack([branch(32, depth) for _ in range(depth)], Residual, dim=32, compile={"backend": backend})
        run = step(network, torch.randn(16, 32))
        with fresh_cache():
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
        return seconds, torch._dynamo.utils.counters["stats"]["unique_graphs"]

    first_step(depths[0])  # imports of the compiler
    rounds = [{depth: first_step(depth) for depth in depths} for _ in range(repetitions)]
    for depth in depths:
        yield Row(
            benchmark="stack",
            case=f"compile and first step, {depth} layers",
            baseline=f"{depths[0]} layers",
            candidate=f"{depth} layers",
            ratio=ratio_of([taken[depth][0] / taken[depths[0]][0] for taken in rounds]),
            repetitions=repetitions,
            target=1.5,
            extra={"graphs": rounds[-1][depth][1], "backend": backend},
        )


def checkpoint(depth: int, dim: int, rows: int, repetitions: int) -> Iterator[Row]:
    branches = [branch(dim, depth) for _ in range(depth)]
    x = torch.randn(rows, dim)
    plain, again = (Stack(branches, Residual, dim=dim, checkpoint=segments) for segments in (False, True))
    common: dict[str, Any] = {"benchmark": "stack", "baseline": "Stack", "candidate": "Stack, checkpoint=True"}
    case = f"checkpoint, {depth} layers of {dim}, {rows} rows"
    times = compare_times(step(plain, x), step(again, x), repetitions=repetitions)
    yield Row(case=f"{case}: time", target=2.1, **common, **times)
    sizes = compare_bytes(step(plain, x, reuse_gradients=True), step(again, x, reuse_gradients=True))
    yield Row(case=f"{case}: memory", target=2.5 * depth**-0.5, **common, **sizes)


def deep(depth: int, repetitions: int) -> Iterator[Row]:
    def build(make: Callable[[list[nn.Module]], nn.Module]) -> list[Tensor]:
        torch.manual_seed(0)
        network = make([branch(8, depth) for _ in range(depth)])
        return [p.detach() for p in network.parameters()]

    common: dict[str, Any] = {"benchmark": "stack", "baseline": "loop by hand", "candidate": "Stack of Residual"}
    make = functools.partial(Stack, connection=Residual, dim=8)
    start = time.perf_counter()
    build(make)
    seconds = round(time.perf_counter() - start, 2)
    times = compare_times(lambda: build(ByHand), lambda: build(make), repetitions=7)
    yield Row(case=f"build {depth} layers of 8", target=None, **common, **times, extra={"seconds": seconds})
    branches = [branch(8, depth) for _ in range(depth)]
    x = torch.randn(4, 8)
    times = compare_times(step(ByHand(branches), x), step(make(branches), x), repetitions=repetitions)
    yield Row(case=f"step, {depth} layers of 8, 4 rows", target=None, **common, **times)


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    """Yield the cases, small ones if `quick`."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if quick:
        yield lambda: by_hand(100, 64, 64, 21)
        yield lambda: compile_time((2, 16), 2, "aot_eager")
        yield lambda: checkpoint(100, 16, 16, 7)
        yield lambda: deep(500, 7)
        return
    yield lambda: by_hand(100, 64, 64, 201)
    yield lambda: by_hand(1_000, 64, 64, 31)
    yield lambda: by_hand(12, 512, 4_096, 11)
    yield lambda: compile_time((2, 8, 32, 64), 7, "inductor" if compiler else "aot_eager")
    yield lambda: checkpoint(1_000, 64, 64, 11)
    yield lambda: checkpoint(100, 512, 256, 7)
    yield lambda: deep(10_000, 7)


if __name__ == "__main__":
    sys.exit(main("stack", cases))
