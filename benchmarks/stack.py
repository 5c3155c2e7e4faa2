"""Stacks: against the loop by hand, compiled by region, checkpointed, 10,000 layers deep, and stacked.

python -m benchmarks.stack [--quick]
"""

from __future__ import annotations

import copy
import functools
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from benchmarks.measure import Program, Row, compare_bytes, compare_times, main, ratio_of, require_equal
from levada import Residual, Stack
from levada.stacking import as_layers, running


class ByHand(nn.Module):
    """What one writes without a library."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return x


class Block(nn.Module):
    """A residual block, as one writes it for an nn.Sequential."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


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


def stacked(depth: int, dim: int, rows: int, repetitions: int) -> Iterator[Row]:
    """Stacked parameters against an nn.Sequential: the step, the optimizer, both together, and checkpointed."""
    x, branches = torch.randn(rows, dim), [branch(dim, depth) for _ in range(depth)]
    plain = nn.Sequential(*map(Block, copy.deepcopy(branches)))
    start = time.process_time()
    made = Stack(branches, Residual, dim=dim, stacked=True)
    built = round(time.process_time() - start, 2)
    before, after = (_optimizer(network) for network in (plain, made))

    def train(network: nn.Module, optimizer: torch.optim.Optimizer) -> Program:
        def run() -> list[Tensor]:
            optimizer.zero_grad()
            loss = network(x).square().mean()
            loss.backward()
            optimizer.step()
            return [loss.detach()]

        return run

    def update(optimizer: torch.optim.Optimizer) -> Program:
        def run() -> list[Tensor]:
            optimizer.step()
            return []

        return run

    common: dict[str, Any] = {"benchmark": "stack", "baseline": "nn.Sequential", "candidate": "Stack, stacked=True"}
    common["extra"] = {"clock": "processor time", "CPU seconds to build": built}
    how: dict[str, Any] = {"repetitions": repetitions, "clock": time.process_time}
    case = f"stacked, {depth} layers of {dim}, {rows} rows"
    _require_same_step(plain, made, x)
    times = compare_times(step(plain, x), step(made, x), **how, check=False)
    yield Row(case=f"{case}: step", target=0.65, **common, **times)
    made.arrange(checkpoint=True)
    _require_same_step(plain, made, x)
    times = compare_times(step(plain, x), step(made, x), **how, check=False)
    yield Row(case=f"{case}: step, checkpoint=True", target=1.1, **common, **times)
    made.arrange(checkpoint=False)
    both = {**common, "baseline": "nn.Sequential, AdamW foreach", "candidate": "Stack, stacked=True, AdamW fused"}
    require_equal(train(plain, before), train(made, after))
    # After one step; after more, AdamW has made whole steps of gradients that are no more than rounding.
    require_equal(lambda: [p.detach() for p in plain.parameters()], lambda: [*made.state_dict().values()])
    times = compare_times(train(plain, before), train(made, after), **how, check=False)
    yield Row(case=f"{case}: training step", target=0.30, **both, **times)
    times = compare_times(update(before), update(after), **how, check=False)
    yield Row(case=f"{case}: optimizer", target=0.06, **both, **times)


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    kind = {"fused": True} if isinstance(network, Stack) else {"foreach": True}
    return torch.optim.AdamW(network.parameters(), lr=1e-4, **kind)


def _require_same_step(plain: nn.Module, made: Stack, x: Tensor) -> None:
    """Raise unless loss and gradients are the same, layer by layer."""

    def stepped() -> list[Tensor]:
        made.zero_grad()
        y = made(x)
        y.sum().backward()
        with as_layers(made):
            return [y.detach(), *(p.grad for p in made.parameters() if p.grad is not None)]

    require_equal(step(plain, x), stepped)


def first_step(depths: tuple[int, ...], dim: int, rows: int, repetitions: int) -> Iterator[Row]:
    """What the first step of a stacked stack takes longer than later ones: its first layer is recorded."""

    def extra_seconds(depth: int) -> float:
        made = Stack([branch(dim, depth) for _ in range(depth)], Residual, dim=dim, stacked=True)
        run, taken = step(made, torch.randn(rows, dim)), []
        for _ in range(4):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return taken[0] - min(taken[1:])

    extra_seconds(depths[0])  # imports
    rounds = [{depth: extra_seconds(depth) for depth in depths} for _ in range(repetitions)]
    for depth in depths:
        yield Row(
            benchmark="stack",
            case=f"stacked, first step above a later one, {depth} layers",
            baseline=f"{depths[0]} layers",
            candidate=f"{depth} layers",
            ratio=ratio_of([taken[depth] / taken[depths[0]] for taken in rounds]),
            repetitions=repetitions,
            target=None,
            extra={"seconds": round(sorted(taken[depth] for taken in rounds)[repetitions // 2], 3)},
        )


def shallow(depths: tuple[int, ...], dim: int, rows: int, repetitions: int) -> Iterator[Row]:
    """From how many layers on to stack them pays: in a forward pass without gradients, in a forward and backward pass,
    and where a setting is another one at each call, so that a layer is recorded in each."""
    x = torch.randn(rows, dim)
    common: dict[str, Any] = {"benchmark": "stack", "baseline": "nn.Sequential", "candidate": "Stack, stacked=True"}
    common["extra"] = {"clock": "processor time"}
    how: dict[str, Any] = {"repetitions": repetitions, "clock": time.process_time}
    for depth in depths:
        branches = [branch(dim, depth) for _ in range(depth)]
        plain = nn.Sequential(*map(Block, copy.deepcopy(branches)))
        made = Stack(branches, Residual, dim=dim, stacked=True)
        case = f"shallow, {depth} layers of {dim}, {rows} rows"
        times = compare_times(_forward(plain, x), _forward(made, x), **how)
        yield Row(case=f"{case}: forward", target=1.0, **common, **times)
        _require_same_step(plain, made, x)
        times = compare_times(step(plain, x), step(made, x), **how, check=False)
        yield Row(case=f"{case}: step", target=1.0, **common, **times)
        found = []
        for stacked in (False, True):
            nets = [nn.Sequential(branch(dim, depth), nn.Dropout(0.1)) for _ in range(depth)]
            found.append(Stack(nets, Residual, dim=dim, stacked=stacked))
        with mock.patch.object(running, "_FEW", 0):
            times = compare_times(*(_changing(net, x) for net in found), **how, check=False)
        names = {"baseline": "Stack", "candidate": "Stack, stacked=True, a recording at each call"}
        yield Row(case=f"{case}: step, another setting each", target=None, **{**common, **names}, **times)


def _forward(network: nn.Module, x: Tensor) -> Program:
    def run() -> list[Tensor]:
        with torch.no_grad():
            return [network(x)]

    return run


def _changing(network: Stack, x: Tensor) -> Program:
    run, dropouts = step(network, x), [m for m in network.modules() if isinstance(m, nn.Dropout)]

    def changed() -> list[Tensor]:
        for dropout in dropouts:
            dropout.p += 1e-6
        return [*run()]

    return changed


def memory(depth: int, dim: int, rows: int) -> Iterator[Row]:
    """The peak of what the allocator gives in a forward and backward pass; modes would see layers run one by one."""
    branches = [branch(dim, depth) for _ in range(depth)]
    plain = nn.Sequential(*map(Block, copy.deepcopy(branches)))
    made, x = Stack(branches, Residual, dim=dim, stacked=True), torch.randn(rows, dim)
    _require_same_step(plain, made, x)
    peaks = [_peak_allocated(network, x) for network in (plain, made)]
    yield Row(
        benchmark="stack",
        case=f"stacked, {depth} layers of {dim}, {rows} rows: memory",
        baseline="nn.Sequential",
        candidate="Stack, stacked=True",
        ratio=ratio_of([peaks[1] / peaks[0]]),
        repetitions=1,
        target=None,
        extra={"bytes": peaks},
    )


def _peak_allocated(network: nn.Module, x: Tensor) -> int:
    network.zero_grad()
    if isinstance(network, Stack):  # what it keeps from pass to pass counts too
        runner = network.stacked.__dict__["cache"]["runner"]
        runner.memory.clear()
        runner.rooms = type(runner.rooms)()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        network(x).sum().backward()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


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
        yield functools.partial(by_hand, 100, 64, 64, 21)
        yield functools.partial(compile_time, (2, 16), 2, "aot_eager")
        yield functools.partial(checkpoint, 100, 16, 16, 7)
        yield functools.partial(deep, 500, 7)
        yield functools.partial(stacked, 100, 16, 16, 7)
        yield functools.partial(first_step, (10, 100), 16, 16, 3)
        yield functools.partial(shallow, (12,), 16, 16, 7)
        yield functools.partial(memory, 12, 16, 16)
        return
    yield functools.partial(by_hand, 100, 64, 64, 201)
    yield functools.partial(by_hand, 1_000, 64, 64, 31)
    yield functools.partial(by_hand, 12, 512, 4_096, 11)
    yield functools.partial(compile_time, (2, 8, 32, 64), 7, "inductor" if compiler else "aot_eager")
    yield functools.partial(checkpoint, 1_000, 64, 64, 11)
    yield functools.partial(checkpoint, 100, 512, 256, 7)
    yield functools.partial(deep, 10_000, 7)
    yield functools.partial(stacked, 1_000, 64, 64, 21)
    yield functools.partial(stacked, 10_000, 64, 64, 9)
    yield functools.partial(first_step, (100, 1_000, 10_000), 64, 64, 7)
    yield functools.partial(shallow, (12, 24, 50, 100, 200), 64, 64, 31)
    for depth, rows in ((12, 64), (24, 64), (100, 64), (12, 512)):
        yield functools.partial(memory, depth, 64, rows)


if __name__ == "__main__":
    sys.exit(main("stack", cases))
