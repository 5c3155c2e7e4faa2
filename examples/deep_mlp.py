"""A 50-layer network that someone could have written, and the same network repaired.

levada check examples/deep_mlp.py:plain --batch examples/deep_mlp.py:batch
levada check examples/deep_mlp.py:repaired --batch examples/deep_mlp.py:batch
"""

import torch
from torch import Tensor, nn

import levada

DEPTH, DIM = 50, 128


class Plain(nn.Module):
    """Fifty ReLU layers with PyTorch's default initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(784, DIM)
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(DEPTH))
        self.head = nn.Linear(DIM, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def plain() -> nn.Module:
    return Plain()


def repaired() -> nn.Module:
    """The same layers as residual branches, with He's initialisation each scaled by 1 / sqrt(50)."""
    branches = [nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()) for _ in range(DEPTH)]
    net = nn.Sequential(nn.Linear(784, DIM), levada.Stack(branches, levada.SkipInit, dim=DIM, init="depth"), nn.Linear(DIM, 10))
    return levada.initialise.he(net)


def batch() -> list[tuple[Tensor, Tensor]]:
    """Four batches of MNIST."""
    from levada.study.data import mnist

    images, labels = mnist("train")
    return [(images[i : i + 128], labels[i : i + 128]) for i in range(0, 512, 128)]
