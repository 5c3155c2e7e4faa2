"""A 50-layer network that someone could have written, and the same network repaired.

levada check examples/deep_mlp.py:plain --batch examples/deep_mlp.py:batch --optimizer SGD --lr 0.03
levada check examples/deep_mlp.py:repaired --batch examples/deep_mlp.py:batch --optimizer SGD --lr 0.03
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
    """The same layers as residual branches, each scaled by 1 / sqrt(50), with He's initialisation."""
    branches = [nn.Sequential(nn.ReLU(), nn.Linear(DIM, DIM)) for _ in range(DEPTH)]
    stack = levada.Stack(branches, levada.SkipInit, dim=DIM, init="depth")
    return levada.initialise.he(nn.Sequential(nn.Linear(784, DIM), stack, nn.Linear(DIM, 10)))


def batch() -> list[tuple[Tensor, Tensor]]:
    """Four batches of MNIST, standardised."""
    from levada.study.data import mnist

    data = mnist()
    images = (data.train_inputs[:512].flatten(1) / 255 - 0.1307) / 0.3081
    return list(zip(images.split(128), data.train_targets[:512].split(128), strict=True))
