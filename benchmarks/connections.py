"""One layer of each connection, forward and backward, over one residual layer; the branch is free.

python -m benchmarks.connections [--quick]
"""

from __future__ import annotations

import copy
import ctypes
import functools
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.costs import DEPTH, LAYER, Chain, FreeBranch, listed
from benchmarks.measure import Program, Row, compare_times, main, require_equal
from levada import HyperConnection, Residual
from levada.connection import Connection

STREAMS = 4
_TURN = 0.05  # seconds


def step(advance: Callable[[Any], Any], state: Any, parameters: list[nn.Parameter]) -> Program:
    """Take a step from a state, and go back; return the new state and the gradients."""
    tensors = [x for x in ([state] if isinstance(state, Tensor) else state) if isinstance(x, Tensor)]

    def results(new: Any) -> list[Tensor]:
        return [x for x in ([new] if isinstance(new, Tensor) else new) if isinstance(x, Tensor)]

    torch.manual_seed(1)
    cotangents = [torch.randn(x.shape).to(x.dtype) for x in results(advance(state))]

    def run() -> list[Tensor]:
        new = results(advance(state))
        gradients = torch.autograd.grad(new, [*tensors, *parameters], cotangents, allow_unused=True)
        return [*(x.detach() for x in new), *(g for g in gradients if g is not None)]

    return run


def program(chain: Chain) -> Program:
    """Return the last layer's step."""
    return step(chain.advance, chain.state(), list(chain.last.parameters()))


def require_precise(connection: type[Connection], dim: int, options: dict[str, Any] | None = None) -> None:
    """Raise AssertionError unless the layer computes in float32 what it computes in float64."""
    torch.manual_seed(0)
    single = Chain(connection, tokens=16, dim=dim, options=options)
    with torch.no_grad():
        for parameter in single.last.parameters():  # off its start, where zeros hide what is multiplied by them
            parameter.add_(0.1 * torch.randn_like(parameter))
    double = copy.deepcopy(single)
    double.x = double.x.double()
    for layer, branch in zip(double.connections, double.branches, strict=True):
        layer.double()
        branch.out, branch.gradient = branch.out.double(), branch.gradient.double()
    one = step(single.advance, single.state(), list(single.last.parameters()))
    two = step(double.advance, double.state(), list(double.last.parameters()))
    require_equal(lambda: [x.float() for x in two()], one, rtol=1e-3, atol=1e-3)


class Rival:
    """A layer of the package hyper-connections, whose streams are (n, tokens, dim)."""

    def __init__(self, kind: str, tokens: int, dim: int) -> None:
        import hyper_connections

        self.branch = FreeBranch(tokens, dim, dim)
        self.branch.out, self.branch.gradient = self.branch.out[None], self.branch.gradient[None]  # a batch of one
        make = getattr(hyper_connections, kind)
        self.layer = make(STREAMS, dim=dim, layer_index=LAYER, branch=self.branch)
        self.state = torch.randn(STREAMS, tokens, dim).requires_grad_()

    def program(self) -> Program:
        return step(self.layer, self.state, list(self.layer.parameters()))

    def require_right(self) -> None:
        """Raise AssertionError unless it starts as levada's does, or else keeps the sum of the streams."""
        if type(self.layer).__name__ == "HyperConnections":
            ours = Chain(HyperConnection, tokens=self.state.shape[1], dim=self.state.shape[2])
            ours.branches[-1].out, ours.branches[-1].gradient = self.branch.out[0], self.branch.gradient[0]
            state = self.state.detach().transpose(0, 1).contiguous().requires_grad_()
            theirs, found = self.layer(self.state), ours.advance(state)
            expected = torch.autograd.grad(theirs.square().sum(), self.state)[0]
            gradient = torch.autograd.grad(found.square().sum(), state)[0]
            require_equal(lambda: [theirs, expected], lambda: [found.transpose(0, 1), gradient.transpose(0, 1)])
            return
        silent = copy.deepcopy(self.branch)
        silent.out.zero_()
        new = copy.deepcopy(self.layer)
        new.branch = silent
        require_equal(lambda: [self.state.sum(0)], lambda: [new(self.state).sum(0)], rtol=1e-3, atol=1e-3)


def keep_memory() -> None:
    """Let the C library keep freed memory: mapped anew, as above 32 MiB, pages take most of an operation's time."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def row(candidate: str, baseline: Program, measured: Program, tokens: int, dim: int, repetitions: int) -> Row:
    """Time a candidate against the residual layer, each as often as takes about as long and no less than `_TURN`.

    On a shared machine a long run is slowed down by others, and a short one either is not or is a lot.
    """
    taken = _fastest(measured)
    often = math.ceil(_TURN / taken)
    residuals = max(round(often * taken / _fastest(baseline)), 1)
    alone = torch.get_num_threads() == 1  # the thread does all of the work: its own time is what it would take alone
    compared = compare_times(
        _repeated(baseline, residuals),
        _repeated(measured, often),
        repetitions=repetitions,
        check=False,
        clock=time.thread_time if alone else time.perf_counter,
    )
    compared["ratio"] = {part: value * residuals / often for part, value in compared["ratio"].items()}
    return Row(
        benchmark="connections",
        case=f"{candidate}, {tokens} tokens of {dim}",
        baseline="Residual",
        candidate=candidate,
        target=None,
        extra={
            "tokens": tokens,
            "dim": dim,
            "layer": LAYER,
            "depth": DEPTH,
            "clock": "thread" if alone else "wall",
        },
        **compared,
    )


def _repeated(run: Program, often: int) -> Program:
    def repeated() -> Sequence[Tensor]:
        for _ in range(often - 1):
            run()
        return run()

    return repeated


def _fastest(run: Program) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def ours(
    connection: type[Connection], tokens: int, dim: int, repetitions: int, options: dict[str, Any] | None = None
) -> Iterator[Row]:
    require_precise(connection, dim, options)
    baseline = program(Chain(Residual, tokens=tokens, dim=dim))
    measured = program(Chain(connection, tokens=tokens, dim=dim, options=options))
    name = ", ".join([connection.__name__, *(f"{key}={value!r}" for key, value in (options or {}).items())])
    yield row(name, baseline, measured, tokens, dim, repetitions)


def theirs(kind: str, tokens: int, dim: int, repetitions: int) -> Iterator[Row]:
    rival = Rival(kind, tokens, dim)
    rival.require_right()
    baseline = program(Chain(Residual, tokens=tokens, dim=dim))
    name = f"hyper-connections {version('hyper-connections')}, {kind}"
    yield row(name, baseline, rival.program(), tokens, dim, repetitions)


def linear(tokens: int, dim: int, repetitions: int) -> Iterator[Row]:
    """For comparison, the least that a branch with weights can be."""
    branch, baseline = nn.Linear(dim, dim), program(Chain(Residual, tokens=tokens, dim=dim))
    measured = step(branch, torch.randn(tokens, dim).requires_grad_(), list(branch.parameters()))
    yield row("nn.Linear(dim, dim)", baseline, measured, tokens, dim, repetitions)


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    """Yield the cases, small ones if `quick`."""
    keep_memory()
    sizes = [(64, 32, 7)] if quick else [(4_096, 512, 11), (256, 128, 11)]
    installed = importlib.util.find_spec("hyper_connections") is not None
    for tokens, dim, repetitions in sizes:
        size: dict[str, Any] = {"tokens": tokens, "dim": dim, "repetitions": repetitions}
        for connection in listed().values():
            yield functools.partial(ours, connection, **size)
        yield functools.partial(ours, HyperConnection, **size, options={"dynamic": False})
        for kind in ("HyperConnections", "mHC") if installed else ():
            yield functools.partial(theirs, kind, **size)
        yield functools.partial(linear, **size)


if __name__ == "__main__":
    sys.exit(main("connections", cases))
