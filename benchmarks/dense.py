"""Dense connections in one shared buffer against concatenating anew at each layer.

python -m benchmarks.dense [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Row, compare_bytes, compare_times, main
from benchmarks.stack import step
from levada import Stack
from levada.connections import Dense


class Concatenating(nn.Module):
    """What one writes without a library: every layer copies all features before it."""

    def __init__(self, branches: list[nn.Module], axis: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = torch.cat([x, branch(x)], self.axis)
        return x


def compare(
    kind: str, depth: int, x: Tensor, growth: int, repetitions: int, targets: tuple[float, float]
) -> Iterator[Row]:
    axis = 1 if kind == "convolution" else -1
    layer = (lambda dim: nn.Conv2d(dim, growth, 3, padding=1)) if axis == 1 else (lambda dim: nn.Linear(dim, growth))
    network = Stack(
        lambda dim: nn.Sequential(layer(dim), nn.Tanh()),
        Dense,
        dim=x.shape[axis],
        depth=depth,
        growth=growth,
        axis=axis,
    )
    by_hand = Concatenating([layer.branch for layer in network], axis)
    common: dict[str, Any] = {"benchmark": "dense", "baseline": "concatenation by hand", "candidate": "Stack of Dense"}
    case = f"{kind}, {depth} layers, growth {growth}"
    times = compare_times(step(by_hand, x), step(network, x), repetitions=repetitions)
    yield Row(case=f"{case}: time", target=targets[0], **common, **times)
    sizes = compare_bytes(step(by_hand, x, reuse_gradients=True), step(network, x, reuse_gradients=True))
    yield Row(case=f"{case}: memory", target=targets[1], **common, **sizes)


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    """Yield the cases, small ones if `quick`."""
    if quick:
        yield lambda: compare("fully connected", 30, torch.randn(64, 24), 12, 7, (0.5, 0.1))
        yield lambda: compare("convolution", 10, torch.randn(2, 24, 8, 8), 12, 7, (0.95, 0.1))
        return
    yield lambda: compare("fully connected", 100, torch.randn(1_024, 24), 12, 11, (0.5, 0.1))
    yield lambda: compare("convolution", 100, torch.randn(8, 24, 16, 16), 12, 7, (0.95, 0.1))


if __name__ == "__main__":
    sys.exit(main("dense", cases))
