"""The grid of networks whose training is predicted, and how several of one kind are trained at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import levada
from levada.study.data import mnist

__all__ = ["CELLS", "FRESH", "Cell", "network", "reached", "samples"]

WIDTH, BATCH, SIDE, CLASSES = 64, 32, 14, 10
EXAMPLES, STEPS, EVERY, TARGET = 512, 200, 20, 0.5
SGD, ADAM, MOMENTUM = (0.001, 0.003, 0.01, 0.03), (0.0003, 0.001), 0.9
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "silu": nn.SiLU}
_NORMALISATIONS = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


@dataclass(frozen=True, slots=True)
class Cell:
    """One network: blocks `norm(W x + b)` and the activation, or behind a skip norm, activation and linear map.

    Attributes:
        activation: "tanh", "relu", "sigmoid", "gelu" or "silu".
        connection: "plain" or "residual".
        normalisation: "none", "layer" or "batch".
        variance: fan_in times the variance of a weight.
        depth: number of blocks.
    """

    activation: str
    connection: str
    normalisation: str
    variance: float
    depth: int

    @property
    def name(self) -> str:
        """Unique; its hash decides the split."""
        return f"{self.activation}-{self.connection}-{self.normalisation}-{self.variance:g}/{self.depth}"

    @property
    def bias(self) -> float:
        """Variance of a bias: that of Schoenholz et al. 2017, none for ReLU."""
        return 0.0 if self.activation == "relu" else 0.05


def _grid() -> list[Cell]:
    deep, few, three = (5, 10, 20, 40, 80, 160), (5, 10, 20, 40, 80), (5, 20, 80)
    families = [
        ("tanh", "plain", "none", (0.5, 0.9, 1, 1.5, 1.76, 2, 2.5, 3, 4), deep),
        ("relu", "plain", "none", (1, 1.5, 2, 2.5, 3), few),
        ("sigmoid", "plain", "none", (1, 4, 16), (2, 5, 10, 20, 40)),
        ("tanh", "residual", "none", (0.1, 0.5, 1, 2, 4), three),
        ("relu", "residual", "none", (0.02, 0.1, 0.5, 1, 2), three),
        ("tanh", "plain", "layer", (0.5, 2), few),
        ("relu", "plain", "layer", (0.5, 2), few),
        ("tanh", "plain", "batch", (2,), few),
        ("relu", "plain", "batch", (2,), few),
        ("tanh", "residual", "layer", (0.5, 2), three),
        ("relu", "residual", "layer", (0.5, 2), three),
        ("relu", "residual", "batch", (0.5, 2), three),
    ]
    return _cells(families)


def _cells(families: Sequence[tuple[str, str, str, Sequence[float], Sequence[int]]]) -> list[Cell]:
    return [Cell(a, c, n, v, d) for a, c, n, variances, depths in families for v in variances for d in depths]


def _fresh() -> list[Cell]:
    """Return families, variances and depths that were drawn up after every constant had been fixed."""
    four, two = (7, 15, 30, 60), (15, 60)
    return _cells(
        [
            ("tanh", "plain", "none", (0.7, 1.25, 2.25, 3.5), four),
            ("gelu", "plain", "none", (1, 2, 3), four),
            ("gelu", "plain", "layer", (1,), four),
            ("gelu", "plain", "batch", (2,), four),
            ("gelu", "residual", "none", (0.5, 2), two),
            ("silu", "residual", "layer", (1,), two),
        ]
    )


CELLS = {cell.name: cell for cell in _grid()}
FRESH = {cell.name: cell for cell in _fresh()}


@functools.cache
def samples() -> tuple[Tensor, Tensor]:
    """Return digits averaged to 14 x 14 and standardised, `(512, 196)`, and their labels."""
    data = mnist()
    chosen = torch.randperm(len(data.train_inputs), generator=torch.Generator().manual_seed(0))[:EXAMPLES]
    images = functional.avg_pool2d(data.train_inputs[chosen].float()[:, None], 28 // SIDE).flatten(1)
    return (images - images.mean()) / images.std(), data.train_targets[chosen]


def network(cell: Cell, seed: int) -> nn.Module:
    """Return the network with its weights drawn.

    Args:
        cell: which.
        seed: of the weights.
    """

    def normalisation() -> list[nn.Module]:
        return [_NORMALISATIONS[cell.normalisation](WIDTH)] if cell.normalisation != "none" else []

    def branch() -> nn.Module:
        linear, activation = nn.Linear(WIDTH, WIDTH), _ACTIVATIONS[cell.activation]()
        if cell.connection == "plain":
            return nn.Sequential(linear, *normalisation(), activation)
        return nn.Sequential(*normalisation(), activation, linear)

    connection = levada.Plain if cell.connection == "plain" else levada.Residual
    stack = levada.Stack([branch() for _ in range(cell.depth)], connection, dim=WIDTH)
    last = normalisation() if cell.connection == "residual" else []
    net = nn.Sequential(nn.Linear(SIDE * SIDE, WIDTH), stack, *last, nn.Linear(WIDTH, CLASSES))
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            inside = module.in_features == module.out_features
            variance, bias = (cell.variance, cell.bias) if inside else (1.0, 0.0)
            with torch.no_grad():
                module.weight.normal_(0, math.sqrt(variance / module.in_features), generator=generator)
                module.bias.normal_(0, math.sqrt(bias), generator=generator)
    return net


def reached(cell: Cell, seeds: Sequence[int]) -> dict[str, list[list[int]]]:
    """Train the network at every rate and from every seed; return the steps after which it knew half of the examples.

    All of them are trained at once, as a batch of matrices, SGD with momentum 0.9; once one rate is enough, the
    optimizer's other rates are left at that seed. -1 where 200 steps were not enough, or were not made.

    Args:
        cell: which network.
        seeds: of the weights.

    Returns:
        For "sgd" and for "adam" a row for each rate with a number for each seed.
    """
    count = len(seeds)
    replicas = Replicas(cell, seeds)
    inputs, targets = samples()
    steps = torch.full((len(SGD) + len(ADAM), count), -1)
    generator, order = torch.Generator().manual_seed(1), torch.empty(0, dtype=torch.long)
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            there = replicas.accuracy(inputs, targets) > TARGET
            steps.view(-1)[replicas.numbers[there]] = step
            done = torch.stack([(part >= 0).any(0) for part in steps.split([len(SGD), len(ADAM)])])
            replicas.keep(~done[(replicas.numbers >= len(SGD) * count).long(), replicas.numbers % count])
            if not len(replicas.numbers):
                break
        if len(order) < BATCH:
            order = torch.randperm(EXAMPLES, generator=generator)
        batch, order = order[:BATCH], order[BATCH:]
        replicas.step(inputs[batch], targets[batch])
    return {"sgd": steps[: len(SGD)].tolist(), "adam": steps[len(SGD) :].tolist()}


class Replicas:
    """One network from several seeds at several rates: matrices `(replicas, in, out)`, stacked over the blocks.

    Args:
        cell: which network.
        seeds: of the weights.
    """

    def __init__(self, cell: Cell, seeds: Sequence[int]) -> None:
        self.cell, self.made = cell, 0
        self.rate = torch.tensor([*SGD, *ADAM]).repeat_interleave(len(seeds))
        self.adam = torch.arange(len(self.rate)) >= len(SGD) * len(seeds)
        self.numbers = torch.arange(len(self.rate))
        layers = [[m for m in network(cell, seed).modules() if isinstance(m, nn.Linear)] for seed in seeds]
        weights = [torch.stack([m.weight.detach().T for m in same]) for same in zip(*layers, strict=True)]
        biases = [torch.stack([m.bias.detach()[None] for m in same]) for same in zip(*layers, strict=True)]
        rates = len(SGD) + len(ADAM)
        # First and last map alone, those of the blocks stacked: few tensors, `(blocks, replicas, ...)`.
        self.parameters = [
            torch.stack(part).repeat(1, rates, 1, 1)
            for part in (weights[:1], biases[:1], weights[1:-1], biases[1:-1], weights[-1:], biases[-1:])
        ]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    def keep(self, chosen: Tensor) -> None:
        """Go on with some replicas.

        Args:
            chosen: which, `(replicas,)`.
        """
        if not bool(chosen.all()):
            self.rate, self.adam, self.numbers = self.rate[chosen], self.adam[chosen], self.numbers[chosen]
            self.parameters = [p[:, chosen] for p in self.parameters]
            self.moments = [(m[:, chosen], s[:, chosen]) for m, s in self.moments]

    def accuracy(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the share of right answers of each replica, in the mode of training."""
        with torch.no_grad():
            return (self.forward(self.parameters, inputs).argmax(-1) == targets).double().mean(1)

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Return logits `(replicas, batch, classes)`."""
        activation, plain = _ACTIVATIONS[self.cell.activation](), self.cell.connection == "plain"
        first, first_bias, weights, biases, last, last_bias = parameters
        x = torch.matmul(inputs, first[0]) + first_bias[0]
        for weight, bias in zip(weights.unbind(), biases.unbind(), strict=True):
            if plain:
                x = activation(_normalised(self.cell, torch.baddbmm(bias, x, weight)))
            else:
                x = x + torch.baddbmm(bias, activation(_normalised(self.cell, x)), weight)
        return torch.baddbmm(last_bias[0], x if plain else _normalised(self.cell, x), last[0])

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """Make a step of SGD with momentum or of Adam (0.9, 0.999) with each replica."""
        leaves = [p.requires_grad_(True) for p in self.parameters]
        logits = self.forward(leaves, inputs)
        # Summed over replicas, which have nothing in common: each gets its own gradient.
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.repeat(len(self.rate)), reduction="sum")
        gradients = torch.autograd.grad(loss / len(targets), leaves)
        self.made += 1
        adam = self.adam.view(1, -1, 1, 1)
        rate, fresh = self.rate.view(1, -1, 1, 1), torch.where(adam, 0.1, 1.0)
        corrected = torch.where(adam, rate / (1 - 0.9**self.made), rate)
        with torch.no_grad():
            for i, (gradient, (mean, square)) in enumerate(zip(gradients, self.moments, strict=True)):
                mean.mul_(MOMENTUM).add_(fresh * gradient)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                root = torch.where(adam, (square / (1 - 0.999**self.made)).sqrt_().add_(1e-8), 1.0)
                self.parameters[i] = self.parameters[i].detach() - corrected * mean / root


def _normalised(cell: Cell, x: Tensor) -> Tensor:
    if cell.normalisation == "layer":
        return functional.layer_norm(x, (x.shape[-1],))
    if cell.normalisation == "batch":  # of each replica: over the batch, in the mode of training
        flat = x.transpose(0, 1).reshape(x.shape[1], -1)
        normal = functional.batch_norm(flat, None, None, training=True)
        return normal.view(x.shape[1], x.shape[0], -1).transpose(0, 1)
    return x
