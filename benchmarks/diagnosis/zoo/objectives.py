"""Contrasts, densities, values of actions, fields and an equation, by hand."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.zoo.entry import Entry, adamw, digits, optimizer, pixels

__all__ = ["entries"]

CROSS, MEAN_SQUARE = functional.cross_entropy, functional.mse_loss
ADAM = optimizer("Adam", lr=1e-3)


def encoder(out: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, out)),
    )


class Pair(nn.Module):
    """One network on two inputs; returns their distance (Hadsell, Chopra and LeCun 2006)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = encoder(16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return functional.pairwise_distance(self.body(a), self.body(b))


def siamese() -> Setup:
    batches = []
    for x, y in digits(rows=48):
        order = torch.argsort(y)  # neighbours are mostly of one class
        other = torch.where(torch.arange(48) % 2 == 0, order.roll(1), torch.randperm(48))
        batches.append(((x[order], x[other]), (y[order] == y[other]).float()))

    def contrastive(distance: Tensor, same: Tensor) -> Tensor:
        return (same * distance.square() + (1 - same) * (1.0 - distance).relu().square()).mean()

    return Setup(Pair(), batches, contrastive, ADAM)


class Contrast(nn.Module):
    """Two views of each image; returns their similarities (Chen et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = encoder(32)

    def forward(self, views: Tensor) -> Tensor:
        code = functional.normalize(self.body(views))
        alike = code @ code.T / 0.5
        return alike.masked_fill(torch.eye(len(code), dtype=torch.bool), -1e9)


def views(x: Tensor) -> Tensor:
    """Return an image shifted, and shifted otherwise with noise."""
    return torch.cat([x.roll((1, 2), (2, 3)), x.roll((-2, 1), (2, 3)) + 0.3 * torch.randn_like(x)])


def contrast() -> Setup:
    batches = [(views(x), (torch.arange(64) + 32) % 64) for x, _ in digits(rows=32)]
    return Setup(Contrast(), batches, CROSS, optimizer("Adam", lr=1e-3, weight_decay=1e-6))


class Alone(nn.Module):
    """Two views and no negatives: a predictor, and a stopped gradient (Chen and He) or a slow copy (Grill)."""

    def __init__(self, slow: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(encoder(32), nn.BatchNorm1d(32, affine=False))
        self.predictor = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32))
        self.slow = copy.deepcopy(self.body).requires_grad_(False) if slow else None

    def forward(self, views: Tensor) -> Tensor:
        code = self.body(views)
        with torch.no_grad():
            target = code if self.slow is None else self.slow(views)
        alike = functional.cosine_similarity(self.predictor(code), target.detach().roll(len(views) // 2, 0))
        return -alike.mean()

    def follow(self) -> None:
        """Let the slow copy move a hundredth of the way."""
        assert self.slow is not None
        for slow, fast in zip(self.slow.parameters(), self.body.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.01)


def alone(slow: bool) -> Setup:
    batches = [((views(x),), None) for x, _ in digits(rows=32)]
    return Setup(Alone(slow), batches, "output", optimizer("SGD", lr=0.05, momentum=0.9, weight_decay=1e-4))


class Coupling(nn.Module):
    """Eight affine coupling layers on points of the plane (Dinh, Sohl-Dickstein and Bengio 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)) for _ in range(8)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.zeros(len(x))
        for net in self.nets:
            kept, moved = x.chunk(2, 1)
            scale, shift = net(kept).chunk(2, 1)
            scale = scale.tanh()
            x = torch.cat([moved * scale.exp() + shift, kept], 1)
            volume = volume + scale[:, 0]
        return x, volume


def moons(rows: int) -> Tensor:
    angle, side = math.pi * torch.rand(rows), torch.randint(2, (rows,))
    x = torch.where(side == 0, angle.cos(), 1 - angle.cos())
    y = torch.where(side == 0, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], 1) + 0.1 * torch.randn(rows, 2)


def flow() -> Setup:
    def likelihood(outputs: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
        return (0.5 * outputs[0].square().sum(1) - outputs[1]).mean() + math.log(2 * math.pi)

    return Setup(Coupling(), [(x, x) for x in (moons(128) for _ in range(6))], likelihood, ADAM)


class Values(nn.Module):
    """A value of each action, and a slow copy that makes the targets (Mnih et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
        self.slow = copy.deepcopy(self.fast)

    def forward(self, state: Tensor, action: Tensor, reward: Tensor, following: Tensor, ended: Tensor) -> Tensor:
        value = self.fast(state).gather(1, action[:, None])[:, 0]
        with torch.no_grad():
            target = reward + 0.99 * (1 - ended) * self.slow(following).amax(1)
        return functional.smooth_l1_loss(value, target)

    def follow(self) -> None:
        """Let the slow copy move half a hundredth of the way."""
        for slow, fast in zip(self.slow.parameters(), self.fast.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.005)


def values() -> Setup:
    """A cart and its pole, pushed at random; the equations of Barto, Sutton and Anderson 1983."""
    state, rows = torch.empty(512, 4).uniform_(-0.05, 0.05), []
    for _ in range(12):
        action = torch.randint(2, (512,))
        _, speed, angle, turn = state.T
        push = (20.0 * action - 10 + 0.05 * turn.square() * angle.sin()) / 1.1
        twist = (9.8 * angle.sin() - angle.cos() * push) / (0.5 * (4 / 3 - 0.1 * angle.cos().square() / 1.1))
        pull = push - 0.05 * twist * angle.cos() / 1.1
        following = state + 0.02 * torch.stack([speed, pull, turn, twist], 1)
        ended = ((following[:, 0].abs() > 2.4) | (following[:, 2].abs() > 0.2095)).float()
        rows.append((state, action, torch.ones(512), following, ended))
        state = torch.where(ended[:, None] > 0, torch.empty(512, 4).uniform_(-0.05, 0.05), following)
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    choices = torch.randperm(len(columns[0]))[:768].split(128)
    batches = [(tuple(column[choice] for column in columns), None) for choice in choices]
    return Setup(Values(), batches, "output", adamw(1e-3, 0.01, amsgrad=True))


class Policy(nn.Module):
    """Policy and value of one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.policy, self.value = nn.Linear(64, 2), nn.Linear(64, 1)
        for layer, gain in ((self.trunk[0], 2**0.5), (self.trunk[2], 2**0.5), (self.policy, 0.01), (self.value, 1.0)):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(state)
        return self.policy(hidden), self.value(hidden)[:, 0]


def proximal() -> Setup:
    """One rollout's advantages, clipped ratios (Schulman et al. 2017); to push under the pole is better."""
    batches = []
    for _ in range(6):
        state = torch.randn(128, 4) * torch.tensor([0.5, 0.5, 0.1, 0.5])
        action = torch.randint(2, (128,))
        gain = torch.where((state[:, 2] > 0).long() == action, 1.0, -1.0) + 0.3 * torch.randn(128)
        batches.append((state, (action, (gain - gain.mean()) / gain.std(), gain)))

    def loss(outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits, value = outputs
        action, advantage, gain = targets
        log = logits.log_softmax(1)
        ratio = (log.gather(1, action[:, None])[:, 0] + math.log(2)).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        entropy = -(log.exp() * log).sum(1).mean()
        return -surrogate + 0.5 * MEAN_SQUARE(value, gain) - 0.01 * entropy

    return Setup(Policy(), batches, loss, optimizer("Adam", lr=1e-3, eps=1e-5))


class Sine(nn.Module):
    """A layer of sines with its own initialisation (Sitzmann et al. 2020)."""

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


def siren() -> nn.Module:
    last = nn.Linear(64, 1)
    nn.init.uniform_(last.weight, -math.sqrt(6 / 64) / 30, math.sqrt(6 / 64) / 30)
    return nn.Sequential(Sine(2, 64, first=True), *(Sine(64, 64) for _ in range(3)), last)


class Radiance(nn.Module):
    """A perceptron on positions as sines and cosines, with a skip (Mildenhall et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(26, 64), nn.ReLU(), *(m for _ in range(3) for m in self.layer(64)))
        self.after = nn.Sequential(*self.layer(90), *self.layer(64), nn.Linear(64, 1), nn.Sigmoid())

    @staticmethod
    def layer(inputs: int) -> tuple[nn.Module, nn.Module]:
        return nn.Linear(inputs, 64), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        angle = (x[..., None] * math.pi * 2.0 ** torch.arange(6)).flatten(1)
        place = torch.cat([x, angle.sin(), angle.cos()], 1)
        return self.after(torch.cat([place, self.before(place)], 1))


def field(model: Callable[[], nn.Module], scale: float, lr: float) -> Setup:
    """The pixels of one digit by their places."""
    image = pixels(1)[0].flatten()
    axis = torch.linspace(-1, 1, 28)
    places = torch.cartesian_prod(axis, axis)
    batches = [(places[c], scale * image[c, None] - (scale - 1)) for c in torch.randperm(784)[:768].split(256)]
    return Setup(model(), batches, MEAN_SQUARE, optimizer("Adam", lr=lr))


class Mixture(nn.Module):
    """A density of five Gaussians whose weights, means and spreads a perceptron tells (Bishop 1994)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 15))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, mean, log = self.body(x).chunk(3, 1)
        return weight.log_softmax(1), mean, log


def mixture() -> Setup:
    def likelihood(outputs: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
        weight, mean, log = outputs
        return -torch.logsumexp(weight - 0.5 * ((y - mean) / log.exp()).square() - log - 0.919, 1).mean()

    batches = []
    for _ in range(6):
        y = 2 * torch.rand(128, 1) - 1
        batches.append((y + 0.3 * torch.sin(2 * math.pi * y) + 0.05 * torch.randn_like(y), y))
    return Setup(Mixture(), batches, likelihood, optimizer("Adam", lr=1e-2))


class Equation(nn.Module):
    """A perceptron that solves u'' = -pi^2 sin(pi x), u(0) = u(1) = 0: its loss holds derivatives (Raissi 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(m for a in (1, 32, 32) for m in (nn.Linear(a, 32), nn.Tanh())), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.body(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        ends = self.body(torch.tensor([[0.0], [1.0]]))
        return (bend + math.pi**2 * torch.sin(math.pi * x)).square().mean() + 10 * ends.square().mean()


def equation() -> Setup:
    return Setup(Equation(), [((torch.rand(64, 1),), None) for _ in range(6)], "output", optimizer("Adam", lr=3e-3))


def entries() -> list[Entry]:
    """Return the entries."""
    mnist = "MNIST"
    return [
        Entry("torch/siamese", siamese, mnist),
        Entry("torch/contrast of views", contrast, mnist),
        Entry("torch/stopped gradient of views", functools.partial(alone, False), mnist, 40),
        Entry("torch/slow copy of views", functools.partial(alone, True), mnist, 40, between=Alone.follow),
        Entry("torch/coupling layers", flow, "synthetic, two moons", 40),
        Entry("torch/values of actions", values, "synthetic, a cart and its pole", 40, between=Values.follow),
        Entry("torch/proximal policy", proximal, "synthetic states and advantages", 40),
        Entry("torch/siren", lambda: field(siren, 2.0, 1e-4), mnist, 40),
        Entry("torch/radiance field", lambda: field(Radiance, 1.0, 5e-4), mnist, 60),
        Entry("torch/mixture density", mixture, "synthetic, an inverse of x + 0.3 sin(2 pi x)", 40),
        Entry("torch/equation", equation, "synthetic, points of an interval", 60),
    ]
