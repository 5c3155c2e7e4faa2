"""The linear scan: against the loop by hand and the cumulative form in logarithms, in time and in accuracy.

python -m benchmarks.scan [--quick]
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Program, Row, compare_times, main, ratio_of, require_equal
from levada.cells import Cell, MinGRU, MinLSTM
from levada.ops import linear_scan
from levada.ops.scan import reference

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logarithms of gates, values and an initial state, all positive, to states: what all forms can do."""


def cumulative(log_gate: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    """What one writes for positive numbers without a loop (Heinsen, 2023, arXiv 2311.06281)."""
    total = log_gate.cumsum(0)
    terms = torch.cat([initial.log().unsqueeze(0), value.log() - total])
    return (total + terms.logcumsumexp(0)[1:]).exp()


def loop(log_gate: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    return reference.scan(log_gate.exp(), value, initial, False)


def sequential(log_gate: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    return linear_scan(log_gate.exp(), value, initial)


def of_logarithms(log_gate: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    return linear_scan(log_gate, value, initial, log=True)


def program(scan: Scan, tensors: list[Tensor], cotangent: Tensor) -> Program:
    """Forward and backward."""

    def run() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors]
        states = scan(*leaves)
        return [states.detach(), *torch.autograd.grad(states, leaves, cotangent)]

    return run


def positive(decay: float, steps: int, *shape: int) -> tuple[list[Tensor], Tensor]:
    """Return logarithms of gates, values and an initial state, and a cotangent: nothing can cancel."""
    log_gate = -2 * decay * torch.rand(steps, *shape)
    value, cotangent = (0.1 + torch.rand(steps, *shape) for _ in range(2))
    return [log_gate, value, torch.ones(shape)], cotangent


def speed(steps: int, batch: int, dim: int, repetitions: int) -> Iterator[Row]:
    tensors, cotangent = positive(0.1, steps, batch, dim)
    pairs: list[tuple[Scan, Scan, float | None]] = [
        (loop, sequential, 0.8),
        (cumulative, sequential, 0.15),
        (cumulative, of_logarithms, 0.15),
        (sequential, of_logarithms, None),
    ]
    names = {
        loop: "eager loop",
        cumulative: "log-space cumulative form",
        sequential: "linear_scan",
        of_logarithms: "linear_scan, log=True",
    }
    double = [x.double() for x in tensors], cotangent.double()
    for baseline, candidate, target in pairs:
        # In float64: in float32 the gradients of the cumulative form are off by more than the check allows.
        require_equal(program(baseline, *double), program(candidate, *double), rtol=1e-9, atol=1e-9)
        programs = program(baseline, tensors, cotangent), program(candidate, tensors, cotangent)
        yield Row(
            benchmark="scan",
            case=f"{names[candidate]} / {names[baseline]}",
            baseline=names[baseline],
            candidate=names[candidate],
            target=target,
            extra={"steps": steps, "batch": batch, "dim": dim},
            **compare_times(*programs, repetitions=repetitions, check=False),
        )


def stepped(cell: MinGRU | MinLSTM, x: Tensor) -> Tensor:
    """What one writes by hand: gates of all steps at once, then a loop."""
    (state,), outputs = cell.begin(x.shape[1], dtype=x.dtype), []
    gates, values = cell.recurrence(cell.project(x))
    for gate, value in zip(gates.unbind(0), values.unbind(0), strict=True):
        state = gate * state + value
        outputs.append(state)
    return torch.stack(outputs)


def training(forward: Callable[[Any, Tensor], Tensor], module: nn.Module, x: Tensor) -> Program:
    """Forward, and backward to the parameters."""
    parameters = list(module.parameters())

    def run() -> list[Tensor]:
        outputs = forward(module, x)
        return [outputs.detach(), *torch.autograd.grad(outputs.square().mean(), parameters)]

    return run


def cells(steps: int, batch: int, dim: int, repetitions: int) -> Iterator[Row]:
    """Cells against their own loop, which is the same function, and against nn.LSTM, which is another."""
    x, fused = torch.randn(steps, batch, 1), nn.LSTM(1, dim)

    def scanned(cell: Cell, x: Tensor) -> Tensor:
        return cell.run(x)[0]

    for cell in (MinGRU(1, dim), MinLSTM(1, dim)):
        name, double = type(cell).__name__, (copy.deepcopy(cell).double(), x.double())
        require_equal(training(stepped, *double), training(scanned, *double), rtol=1e-9, atol=1e-11)
        run = training(scanned, cell, x)
        for baseline, target, program in (
            ("its loop", 0.8, training(stepped, cell, x)),
            ("nn.LSTM", None, training(lambda lstm, x: lstm(x)[0], fused, x)),
        ):
            yield Row(
                benchmark="scan",
                case=f"{name} / {baseline}",
                baseline=baseline,
                candidate=name,
                target=target,
                extra={"steps": steps, "batch": batch, "dim": dim},
                **compare_times(program, run, repetitions=repetitions, check=False),
            )


def largest_errors(scan: Scan, tensors: list[Tensor], cotangent: Tensor) -> dict[str, float]:
    """Return the largest relative error in float32 of the states and of each gradient; float64 is the truth."""
    exact = program(of_logarithms, [x.double() for x in tensors], cotangent.double())()
    found = program(scan, tensors, cotangent)()
    names = ("states", "by_gate", "by_value", "by_initial")
    errors = {}
    for name, got, truth in zip(names, found, exact, strict=True):
        kept = truth.abs() > torch.finfo(torch.float32).tiny  # what float32 has no numbers for is not its error
        errors[name] = ((got.double() - truth) / truth)[kept].abs().max().item() if kept.any() else 0.0
    return errors


def accuracy(decay: float, steps: int) -> Iterator[Row]:
    """Compare the largest error of the states with that of the cumulative form, at gates of mean `1 - decay`."""
    tensors, cotangent = positive(decay, steps, 8)
    short = [tensors[0][:200].double(), tensors[1][:200].double(), tensors[2].double()]
    truth = program(loop, short, cotangent[:200].double())
    require_equal(truth, program(of_logarithms, short, cotangent[:200].double()), rtol=1e-12, atol=0.0)
    baseline = largest_errors(cumulative, tensors, cotangent)
    for name, scan in (("linear_scan", sequential), ("linear_scan, log=True", of_logarithms)):
        found = largest_errors(scan, tensors, cotangent)
        yield Row(
            benchmark="scan",
            case=f"error, {steps} steps, decay {decay:g}: {name}",
            baseline="log-space cumulative form, float32",
            candidate=f"{name}, float32",
            ratio=ratio_of([found["states"] / baseline["states"]]),
            repetitions=1,
            target=1.0 if scan is of_logarithms else None,  # a rounded gate is not the scan's error
            extra={
                "largest_relative_error": {key: float(f"{value:.3g}") for key, value in found.items()},
                "of_the_baseline": {key: float(f"{value:.3g}") for key, value in baseline.items()},
            },
        )


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    """Yield the cases, small ones if `quick`."""
    if quick:
        yield lambda: speed(100, 4, 16, 7)
        yield lambda: cells(100, 4, 16, 7)
        for decay in (0.5, 1e-3):
            yield lambda decay=decay: accuracy(decay, 2_000)  # type: ignore[misc]
        return
    yield lambda: speed(784, 32, 128, 15)
    yield lambda: cells(784, 32, 128, 15)
    for decay in (0.5, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        yield lambda decay=decay: accuracy(decay, 100_000)  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main("scan", cases))
