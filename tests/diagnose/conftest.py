"""Four small architectures, in which faults are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

CLASSES = 10


class Transformer(nn.Module):
    def __init__(self, out: int, dropout: float = 0.0) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, batch_first=True, norm_first=True)
        self.embed = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(8, 32, batch_first=True), nn.Linear(32, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


def mlp(out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, out))


def cnn(out: int) -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, out))


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Architecture:
    """A small network and inputs for it."""

    name: str
    make: Callable[[int], nn.Module]
    inputs: Tensor

    def build(self, out: int = CLASSES) -> nn.Module:
        torch.manual_seed(1)
        return self.make(out)

    @property
    def classes(self) -> Tensor:
        return torch.arange(len(self.inputs)) % CLASSES


ARCHITECTURES = (
    Architecture("mlp", mlp, _draw(32, 20)),
    Architecture("cnn", cnn, _draw(32, 3, 12, 12)),
    Architecture("transformer", Transformer, torch.randint(50, (32, 12), generator=torch.Generator().manual_seed(0))),
    Architecture("gru", Recurrent, _draw(32, 6, 8)),
)


@pytest.fixture(params=ARCHITECTURES, ids=lambda one: one.name)
def net(request: pytest.FixtureRequest) -> Architecture:
    return request.param


@pytest.fixture(params=[one for one in ARCHITECTURES if one.inputs.is_floating_point()], ids=lambda one: one.name)
def continuous(request: pytest.FixtureRequest) -> Architecture:
    return request.param
