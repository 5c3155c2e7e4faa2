"""Autoencoders, generators and their opponents, contrasts, densities, fields and values, by hand."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.zoo.entry import Entry, adamw, digits, optimizer

__all__ = ["entries"]

CROSS, MEAN_SQUARE = functional.cross_entropy, functional.mse_loss
LOGISTIC = functional.binary_cross_entropy_with_logits
ADAM = optimizer("Adam", lr=1e-3)
ADVERSARIAL = optimizer("Adam", lr=2e-4, betas=(0.5, 0.999))


def pixels(rows: int = 32, size: int = 28) -> list[Tensor]:
    """Return images in [0, 1]."""
    return [x for x, _ in digits(size, rows, standardised=False)]


def autoencoder() -> Setup:
    sizes = [784, 128, 64, 12, 3]
    layers: list[nn.Module] = []
    for a, b in [*itertools.pairwise(sizes), *zip(sizes[:0:-1], sizes[-2::-1], strict=True)]:
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(nn.Flatten(), *layers[:7], *layers[8:-1], nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))
    return Setup(model, [(2 * x - 1, 2 * x - 1) for x in pixels()], nn.MSELoss(), optimizer("Adam", lr=1e-3))


class Variational(nn.Module):
    """The variational autoencoder of PyTorch's examples (Kingma and Welling 2013)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.spread = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.hidden, self.decoder = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x.flatten(1)).relu()
        mean, log = self.mean(hidden), self.spread(hidden)
        code = mean + torch.randn_like(mean) * (0.5 * log).exp()
        return self.decoder(self.hidden(code).relu()).sigmoid(), mean, log


def variational() -> Setup:
    def loss(outputs: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
        out, mean, log = outputs
        divergence = -0.5 * (1 + log - mean.square() - log.exp()).sum()
        return functional.binary_cross_entropy(out, x.flatten(1), reduction="sum") + divergence

    return Setup(Variational(), [(x, x) for x in pixels()], loss, ADAM)


class Quantised(nn.Module):
    """An autoencoder with a codebook behind a straight-through estimator (van den Oord et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 16, 4, 2, 1))
        self.codes = nn.Embedding(64, 16)
        nn.init.uniform_(self.codes.weight, -1 / 64, 1 / 64)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(16, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.encoder(x).movedim(1, -1)
        nearest = torch.cdist(found.flatten(0, 2), self.codes.weight).argmin(1)
        code = self.codes(nearest).view_as(found)
        commit = MEAN_SQUARE(code, found.detach()) + 0.25 * MEAN_SQUARE(found, code.detach())
        return self.decoder((found + (code - found).detach()).movedim(-1, 1)), commit


def quantised() -> Setup:
    def loss(outputs: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        return MEAN_SQUARE(outputs[0], x) + outputs[1]

    return Setup(Quantised(), [(x, x) for x in pixels()], loss, optimizer("Adam", lr=2e-3))


def generator() -> nn.Module:
    """Return DCGAN's generator for 32 x 32 pixels (Radford, Metz and Chintala 2015)."""
    layers: list[nn.Module] = [nn.Unflatten(1, (64, 1, 1)), nn.ConvTranspose2d(64, 64, 4, 1, 0, bias=False)]
    for a, b in ((64, 32), (32, 16)):
        layers += [nn.BatchNorm2d(a), nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers).apply(as_dcgan)


def discriminator(norm: bool = True) -> nn.Module:
    """Return DCGAN's discriminator, with batch normalisation or with spectral norms."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for a, b in ((16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), *([nn.BatchNorm2d(b)] if norm else []), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(64, 1, 4, 1, 0, bias=False), nn.Flatten(0)]
    return nn.Sequential(*layers).apply(as_dcgan)


def as_dcgan(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def opposed() -> Setup:
    """A discriminator on digits and on what a fixed generator makes."""
    made = generator()
    with torch.no_grad():
        pairs = [torch.cat([2 * x - 1, made(torch.randn(16, 64))]) for x in pixels(16, 32)]
    truth = torch.cat([torch.ones(16), torch.zeros(16)])
    return Setup(discriminator(), [(x, truth) for x in pairs], LOGISTIC, ADVERSARIAL)


def critical() -> Setup:
    """A discriminator with spectral norms and the hinge loss (Miyato et al. 2018)."""
    setup = opposed()
    model = discriminator(norm=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            spectral_norm(module)

    def hinge(outputs: Tensor, truth: Tensor) -> Tensor:
        return (1 - (2 * truth - 1) * outputs).relu().mean()

    return Setup(model, setup.batches, hinge, optimizer("Adam", lr=2e-4, betas=(0.0, 0.9)))


def generating() -> Setup:
    """A generator before a discriminator that learned a little, and is held."""
    torch.manual_seed(1)
    setup = opposed()
    step = ADVERSARIAL(setup.model.parameters())
    for x, truth in [*setup.batches] * 2:
        step.zero_grad()
        LOGISTIC(setup.model(x), truth).backward()
        step.step()
    model = nn.Sequential(generator(), setup.model.requires_grad_(False))
    return Setup(model, [(torch.randn(16, 64), torch.ones(16)) for _ in range(6)], LOGISTIC, ADVERSARIAL)


class Halves(nn.Module):
    """A U-Net of three scales (Ronneberger, Fischer and Brox 2015)."""

    def __init__(self, inputs: int = 1, widths: tuple[int, ...] = (16, 32, 64), time: bool = False) -> None:
        super().__init__()
        pairs = list(zip((inputs, *widths), widths, strict=False))
        self.down = nn.ModuleList(self.block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs[:0:-1])
        self.join = nn.ModuleList(self.block(2 * a, a) for a, _ in pairs[:0:-1])
        self.last = nn.Conv2d(widths[0], 1, 1)
        self.time = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, widths[-1])) if time else None

    @staticmethod
    def block(a: int, b: int) -> nn.Module:
        def half(a: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()]

        return nn.Sequential(*half(a), *half(b))

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        kept = []
        for i, down in enumerate(self.down):
            x = down(functional.max_pool2d(x, 2) if i else x)
            kept.append(x)
        if self.time is not None and time is not None:
            angle = time[:, None] * torch.exp(torch.arange(16) * (-math.log(1e4) / 16))
            x = x + self.time(torch.cat([angle.sin(), angle.cos()], 1))[..., None, None]
        for up, join, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.last(x)


def segmenting() -> Setup:
    """Tell the pixels of a digit under noise."""
    batches = [(x + 0.5 * torch.randn_like(x), (x > 0.5).float()) for x in pixels(12)]
    return Setup(Halves(), batches, LOGISTIC, optimizer("RMSprop", lr=1e-3, momentum=0.9))


def denoising() -> Setup:
    """Diffusion: tell the noise at a random time; the last layer starts at zero (Ho, Jain and Abbeel 2020)."""
    model = Halves(time=True)
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    kept = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    batches = []
    for x in pixels(12):
        time, noise = torch.randint(1000, (12,)), torch.randn_like(x)
        share = kept[time][:, None, None, None]
        batches.append(((share.sqrt() * (2 * x - 1) + (1 - share).sqrt() * noise, time.float()), noise))
    return Setup(model, batches, MEAN_SQUARE, adamw(1e-3, 0.0))


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
        Entry("torch/autoencoder", autoencoder, mnist, 40),
        Entry("torch/variational autoencoder", variational, mnist),
        Entry("torch/quantised autoencoder", quantised, mnist, 120),
        Entry("torch/dcgan discriminator", opposed, "MNIST, and what a fixed generator makes"),
        Entry("torch/dcgan generator", generating, "noise, before a discriminator trained for 12 steps and held"),
        Entry("torch/discriminator, spectral norms", critical, "MNIST, and what a fixed generator makes"),
        Entry("torch/u-net", segmenting, mnist),
        Entry("torch/diffusion", denoising, mnist, 40),
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
