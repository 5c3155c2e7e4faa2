"""Autoencoders, generators and their opponents, and what removes noise, by hand."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.zoo.entry import Entry, adamw, optimizer, pixels

__all__ = ["entries"]

MEAN_SQUARE = functional.mse_loss
LOGISTIC = functional.binary_cross_entropy_with_logits
ADAM = optimizer("Adam", lr=1e-3)
ADVERSARIAL = optimizer("Adam", lr=2e-4, betas=(0.5, 0.999))


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
    ]
