"""The probe: what a training step costs when it is sampled, when it is not, on average, and the first time.

python -m benchmarks.probe [--quick]
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Program, Row, compare_times, main
from levada.probe import Probe


def mlp(depth: int) -> tuple[nn.Module, Tensor]:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]  # else the signal ends in slow denormal numbers
    return nn.Sequential(*layers), torch.randn(64, 64)


class BasicBlock(nn.Module):
    """He, Zhang, Ren and Sun, 2015, arXiv 1512.03385, without the projection: channels stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))))


def resnet(blocks: int) -> tuple[nn.Module, Tensor]:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    body = nn.Sequential(*[BasicBlock(16) for _ in range(blocks)])
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(stem, body, head), torch.randn(32, 3, 32, 32)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, *, steps: int = 1) -> Program:
    def run() -> list[Tensor]:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
        return [loss.detach()]

    return run


def cost(
    name: str, make: Callable[[], tuple[nn.Module, Tensor]], mode: str, target: float | None, repetitions: int
) -> Iterator[Row]:
    """Compare two copies of a model that train alike, one of them watched."""
    model, x = make()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in (model, twin)]
    every = {"sampled": 1, "not sampled": 1 << 30, "average of every 20th": 20, "first": 1}[mode]
    steps = 20 if every == 20 else 1
    baseline, watched = step(model, optimizers[0], x, steps=steps), step(twin, optimizers[1], x, steps=steps)

    def first() -> list[Tensor]:
        with Probe(twin, optimizers[1]):
            return list(watched())

    with Probe(twin, optimizers[1], every=every) if mode != "first" else torch.enable_grad():
        yield Row(
            benchmark="probe",
            case=f"{name}, {mode}",
            baseline="training step with SGD",
            candidate="the same, watched",
            target=target,
            **compare_times(baseline, first if mode == "first" else watched, repetitions=repetitions),
        )


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    depth, blocks, repetitions = (20, 1, 7) if quick else (200, 5, 15)
    models = {
        f"MLP, {depth} layers of 64, 64 rows": (functools.partial(mlp, depth), 1.3),
        f"ResNet, {blocks} blocks of 16 channels, 32 images": (functools.partial(resnet, blocks), 1.05),
    }
    for name, (make, sampled) in models.items():
        yield functools.partial(cost, name, make, "sampled", sampled, repetitions)
        yield functools.partial(cost, name, make, "not sampled", 1.002, 4 * repetitions)
        yield functools.partial(cost, name, make, "average of every 20th", 1.01, 7)
        yield functools.partial(cost, name, make, "first", None, 7)


if __name__ == "__main__":
    sys.exit(main("probe", cases))
