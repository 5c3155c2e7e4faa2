"""Jacobians: extremes of all layers, end to end, and the choice of method by size, against torch.func and one another.

python -m benchmarks.jacobian [--quick]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from benchmarks.measure import Program, Row, compare_times, main, require_equal
from levada.probe import block_extremes, linearise, partial_jacobian_norms, singular_values


def network(depth: int, dim: int, *, norm: bool = False) -> nn.Sequential:
    """Build tanh layers, whose Jacobians have a closed form; with a normalisation, one that has none."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(dim, dim)
        nn.init.orthogonal_(linear.weight)
        layers += [linear, nn.LayerNorm(dim), nn.Tanh()] if norm else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


def repeated(program: Program, times: int = 20) -> Program:
    """Return a program that runs often enough for a busy machine's turns to average out."""

    def run() -> Sequence[Tensor]:
        for _ in range(times - 1):
            program()
        return program()

    return run


def jacrev_layers(net: nn.Sequential, x: Tensor, values: bool = True) -> list[Tensor]:
    """Return the largest singular value of each layer over the samples, from the whole decomposition."""
    found = []
    for linear, activation in zip(net[::2], net[1::2], strict=True):
        matrix = vmap(jacrev(nn.Sequential(linear, activation)))(x)
        found.append(torch.linalg.svdvals(matrix.detach())[:, 0].max() if values else matrix)
        x = activation(linear(x)).detach()
    return [torch.stack(found).double()]


def layers(depth: int, dim: int, samples: int, repetitions: int) -> Iterator[Row]:
    net, x = network(depth, dim), torch.randn(samples, dim)
    baseline = functools.partial(jacrev_layers, net, x)
    at = linearise(net, x)
    common = {"benchmark": "jacobian", "baseline": "loop of vmapped jacrev, svdvals"}
    case = f"layer extremes, {depth} of {dim}, {samples} sample(s)"
    for name, program, target in (
        ("block_extremes", lambda: [block_extremes(at).largest], 0.35),
        ("linearise, block_extremes", lambda: [block_extremes(linearise(net, x)).largest], None),
    ):
        times = compare_times(baseline, program, repetitions=repetitions)
        yield Row(case=f"{case}: {name}", candidate=name, target=target, **common, **times)
    times = compare_times(
        baseline, lambda: [partial_jacobian_norms(net, x, probes=4).log10], repetitions=repetitions, check=False
    )
    yield Row(
        case=f"partial norms, {depth} of {dim}, 4 probes", candidate="partial norms", target=None, **common, **times
    )


def end_to_end(depth: int, dim: int, samples: int, repetitions: int) -> Iterator[Row]:
    net, x = network(depth, dim), torch.randn(samples, dim)
    at = linearise(net, x)
    at.jacobian()  # what all Jacobians share: two backward passes, and whether samples stay apart
    expected = vmap(jacrev(net))(x).detach()
    common = {"benchmark": "jacobian", "baseline": "forward", "candidate": "Jacobian.matrix"}
    case = f"end to end, {depth} of {dim}, {samples} sample(s), forwards"
    for name, program, target in (
        ("recorded", lambda: [at.jacobian().matrix()], 5.0),
        ("with linearise", lambda: [linearise(net, x).jacobian().matrix()], None),
        ("vmapped jacrev", lambda: [vmap(jacrev(net))(x).detach()], None),
    ):
        require_equal(lambda: [expected], program)
        times = compare_times(repeated(lambda: [net(x)]), repeated(program), repetitions=repetitions, check=False)
        yield Row(case=f"{case}: {name}", target=target, **common, **times)


def by_size(depth: int, dim: int, repetitions: int) -> Iterator[Row]:
    """Compare the method that is chosen, after the forward pass is recorded, with each method."""
    net, x = network(depth, dim, norm=True), torch.randn(1, dim)
    at = linearise(net, x)
    at.jacobian()  # what all Jacobians share

    def largest(**options: str) -> list[Tensor]:
        return [singular_values(at.jacobian(), steps=16, **options).values[:, 0].double()]  # type: ignore[arg-type]

    rivals: dict[str, Program] = {
        "explicit": lambda: largest(method="explicit"),
        "lanczos": lambda: largest(method="lanczos"),
        "jacrev + svd": lambda: [torch.linalg.svdvals(vmap(jacrev(net))(x).detach())[:, 0].double()],
    }
    found = {}
    for name, rival in rivals.items():
        require_equal(rival, largest, rtol=1e-2)
        found[name] = compare_times(repeated(rival), repeated(largest), repetitions=repetitions, check=False)
    best = max(found, key=lambda name: found[name]["ratio"]["median"])
    yield Row(
        benchmark="jacobian",
        case=f"largest value, {depth} of {dim}: chosen over the best",
        baseline=best,
        candidate="singular_values",
        target=1.1,
        **found[best],
        extra={name: round(times["ratio"]["median"], 3) for name, times in found.items()},
    )


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    """Yield the cases, small ones if `quick`."""
    if quick:
        yield lambda: layers(10, 16, 2, 7)
        yield lambda: end_to_end(10, 16, 2, 7)
        yield lambda: by_size(3, 16, 7)
        return
    for samples in (1, 8):
        yield functools.partial(layers, 100, 64, samples, 9)
        yield functools.partial(end_to_end, 100, 64, samples, 9)
    for dim in (16, 64, 256, 512):
        yield functools.partial(by_size, 10, dim, 9)


if __name__ == "__main__":
    sys.exit(main("jacobian", cases))
