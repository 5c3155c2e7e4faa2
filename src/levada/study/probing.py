"""Linear probes: how well a linear classifier reads the classes from the state after each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError
from levada.networks import Network, cifar_resnet

__all__ = ["digit_network", "linear_probe", "pooled_states"]


def digit_network(depth: int, *, seed: int, channels: Sequence[int] = (16, 24, 32), deviation: float | None) -> Network:
    """Build a residual network for images of 28 x 28 whose first filters are large enough to look at.

    A convolution of size 7 and stride 2, a maximum pooling, and He's blocks of three stages: `depth` weights in a row.

    Args:
        depth: `6n + 2`.
        seed: of the weights.
        channels: of the three stages.
        deviation: standard deviation of the first convolution's weights; He's if None.

    Shape:
        `(batch, 1, 28, 28)` -> `(batch, 10)`.

    Raises:
        UsageError: if there is no such depth.

    Example:
        >>> net = digit_network(8, seed=0, deviation=0.01)
        >>> net(torch.zeros(2, 1, 28, 28)).shape, net.stem[0].weight.shape
        (torch.Size([2, 10]), torch.Size([16, 1, 7, 7]))

    Source: He, Zhang, Ren and Sun 2015, arXiv 1512.03385.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = cifar_resnet(depth, channels=channels, inputs=1)
        first = nn.Conv2d(1, channels[0], 7, stride=2, padding=3, bias=False)
        if deviation is None:
            nn.init.kaiming_normal_(first.weight)
        else:
            nn.init.normal_(first.weight, std=deviation)
    network.stem = nn.Sequential(first, nn.BatchNorm2d(channels[0]), nn.ReLU(), nn.MaxPool2d(2))
    return network


@torch.no_grad()
def pooled_states(network: Network, images: Tensor, chunk: int = 500) -> list[Tensor]:
    """Return the mean over positions of the state after the stem and after each layer: what the head would be given.

    Args:
        network: of images; it is put into evaluation mode.
        images: `(num, ...)`.
        chunk: images at a time.

    Returns:
        For the stem and each layer `(num, channels)`.
    """
    network.eval()
    parts = []
    for part in torch.split(images, chunk):
        states = [network.stem(part)]
        for layer in network.stack.layers:
            states.append(layer(states[-1]))
        parts.append([state.mean((2, 3)) for state in states])
    return [torch.cat(together) for together in zip(*parts, strict=True)]


def linear_probe(features: Tensor, targets: Tensor, others: Tensor, wanted: Tensor, *, ridge: float = 1e-3) -> float:
    """Return the accuracy on other examples of ridge regression onto the classes, in closed form.

    `W = (X' X / n + ridge I)^-1 X' Y / n`, of features with mean 0 and variance 1 and a constant; the largest of
    `x W` is the answer.

    Args:
        features: of the examples that are fitted.
        targets: their classes.
        others: features of the examples that are asked about.
        wanted: their classes.
        ridge: weight of the penalty.

    Shape:
        features `(num, dim)`, targets `(num,)`.

    Raises:
        UsageError: if the two sets have another number of features.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[-3.0], [0.5]]), torch.tensor([0, 1]))
        1.0

    Source: Alain and Bengio 2016, arXiv 1610.01644 (probes; by logistic regression there).
    """
    if features.shape[1] != others.shape[1]:
        raise UsageError(
            f"linear_probe: both sets must have the same features, got {features.shape[1]} and {others.shape[1]}."
        )
    mean, deviation = features.double().mean(0), features.double().std(0).clamp_min(1e-9)

    def design(x: Tensor) -> Tensor:
        return functional.pad((x.double() - mean) / deviation, (0, 1), value=1.0)

    x, y = design(features), functional.one_hot(targets).double()
    gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ y / len(x))
    return float(((design(others) @ weights).argmax(1) == wanted).double().mean())
