"""How much of a filter is a Gabor function: a wave under a Gaussian, as simple cells of the visual cortex have it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import unfold

from levada._errors import UsageError, require_at_least

__all__ = ["gabor_bank", "gabor_share", "patch_sums", "phase_scrambled", "shuffled"]

_ANGLES, _WAVES, _WIDTHS, _PLACES = 16, 8, 5, 5
_ASPECTS = (1.0, 2.0)
_TOGETHER = 24  # filters times channels that are fitted at a time, for memory's sake


def gabor_bank(size: int) -> Tensor:
    """Return pairs of Gabor functions of many orientations, wavelengths, widths and places, without their means.

    `exp(-(u^2 + v^2 / a^2) / (2 s^2)) cos(2 pi u / w)`, and the same with a sine, where u and v are the distances from
    the place across and along the wave. The two of a pair are made orthonormal, so that every phase is in their span.

    Args:
        size: width and height in pixels, at least 3.

    Returns:
        16 angles, 8 wavelengths from 2 pixels to 2 sizes, 5 widths from an eighth to a half of the size, 2 aspects a
        (1 and 2) and 25 places within the middle half.

    Shape:
        Returns `(32000, size^2, 2)`, float64.

    Raises:
        UsageError: if the size is below 3.

    Example:
        >>> bank = gabor_bank(7)
        >>> bank.shape, bool(bank.sum(1).abs().max() < 1e-9)
        (torch.Size([32000, 49, 2]), True)

    Source: Daugman 1985; Jones and Palmer 1987.
    """
    require_at_least("gabor_bank", "size", size, 3)
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = torch.arange(_ANGLES, dtype=torch.float64) * math.pi / _ANGLES
    wave = torch.logspace(math.log2(2), math.log2(2 * size), _WAVES, base=2, dtype=torch.float64)
    width = torch.logspace(math.log2(size / 8), math.log2(size / 2), _WIDTHS, base=2, dtype=torch.float64)
    place = torch.linspace(-size / 4, size / 4, _PLACES, dtype=torch.float64)
    grid = torch.cartesian_prod(angle, wave, width, torch.tensor(_ASPECTS, dtype=torch.float64), place, place)
    angle, wave, width, aspect, left, down = (column[:, None] for column in grid.T)
    dx, dy = x.flatten() - left, y.flatten() - down
    across, along = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    hull = torch.exp(-(across.square() + (along / aspect).square()) / (2 * width.square()))
    phase = 2 * math.pi * across / wave
    pairs = torch.stack([hull * phase.cos(), hull * phase.sin()], 2)
    return _orthonormal(pairs - pairs.mean(1, keepdim=True))


def _orthonormal(pairs: Tensor) -> Tensor:
    """Make the two functions of each pair orthonormal; one that is nothing, or the other again, becomes 0."""
    first, second = pairs.unbind(2)
    turned: list[Tensor] = []
    for function in (first, second):
        for before in turned:
            function = function - (function * before).sum(1, keepdim=True) * before
        norm = function.norm(dim=1, keepdim=True)
        turned.append(torch.where(norm > 1e-6, function / norm.clamp_min(1e-30), 0.0))
    return torch.stack(turned, 2)


def gabor_share(filters: Tensor, bank: Tensor) -> Tensor:
    """Return how much of each filter's variance the best Gabor function in one direction of colour explains: R^2.

    `max over the bank of s_1(G' W)^2 / |W|^2`, where W has the filter's channels as columns, each without its mean,
    and s_1 is the largest singular value: the best phase and the best mixture of channels in closed form.

    Args:
        filters: any type; computed in float64.
        bank: of their size, from `gabor_bank`.

    Shape:
        `(num, channels, size, size)` -> `(num,)`.

    Raises:
        UsageError: if the bank is of another size, or a filter is constant.

    Example:
        >>> bank = gabor_bank(5)
        >>> gabor_share(bank[7:8, :, 0].view(1, 1, 5, 5), bank).item() > 1 - 1e-9
        True
    """
    if filters.dim() != 4 or filters.shape[2] * filters.shape[3] != bank.shape[1]:
        raise UsageError(
            f"gabor_share: filters must be (num, channels, size, size) of the bank's {bank.shape[1]} pixels, "
            f"got {tuple(filters.shape)}."
        )
    columns = filters.detach().double().flatten(2)
    columns = columns - columns.mean(2, keepdim=True)
    total = columns.square().sum((1, 2))
    if bool((total == 0).any()):
        raise UsageError("gabor_share: a filter is constant, and has no variance to explain. Leave it out.")
    best, waves = [], bank.transpose(1, 2).reshape(-1, bank.shape[1])
    for own in torch.split(columns, max(1, _TOGETHER // columns.shape[1])):
        found = (waves @ own.flatten(0, 1).T).view(len(bank), 2, *own.shape[:2])  # functions, phase, filter, channel
        # The larger eigenvalue of the symmetric 2 x 2 matrix of inner products.
        a, d = found.square().sum(3).unbind(1)
        b = (found[:, 0] * found[:, 1]).sum(2)
        best.append(((a + d) / 2 + ((a - d).square() / 4 + b.square()).sqrt()).amax(0))
    return torch.cat(best) / total


def shuffled(filters: Tensor, generator: torch.Generator) -> Tensor:
    """Return the filters with the pixels of each in another order: the same colours, without arrangement.

    Args:
        filters: `(num, channels, size, size)`.
        generator: draws the orders, one for all channels of a filter.

    Example:
        >>> one = torch.arange(9.0).view(1, 1, 3, 3)
        >>> torch.equal(shuffled(one, torch.Generator().manual_seed(0)).flatten().sort().values, one.flatten())
        True
    """
    flat = filters.flatten(2)
    order = torch.stack([torch.randperm(flat.shape[2], generator=generator) for _ in range(len(flat))])
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(filters)


def phase_scrambled(filters: Tensor, generator: torch.Generator) -> Tensor:
    """Return filters of the same spectrum whose waves are displaced at random: as smooth, without arrangement.

    A wave's phase is turned by the same angle in every channel, so that the channels' spectra and their products stay,
    and with them how the colours go together.

    Args:
        filters: `(num, channels, size, size)`; computed in float64.
        generator: draws the angles, those of a filter of white noise.

    Example:
        >>> one = torch.arange(9.0).view(1, 1, 3, 3)
        >>> found = phase_scrambled(one, torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(torch.fft.fft2(found).abs(), torch.fft.fft2(one.double()).abs()))
        True

    Source: Theiler et al. 1992 (surrogate data).
    """
    num, _, *size = filters.shape
    noise = torch.fft.fft2(torch.randn(num, 1, *size, generator=generator, dtype=torch.float64))
    turn = noise / noise.abs()
    turn[..., 0, 0] = 1.0  # the mean stays
    scrambled: Tensor = torch.fft.ifft2(torch.fft.fft2(filters.detach().double()) * turn).real
    return scrambled


def patch_sums(images: Tensor, num: int, size: int, *, stride: int = 1, generator: torch.Generator) -> Tensor:
    """Return sums of all patches of some images, with weights drawn from N(0, 1): what a gradient of filters adds up.

    Args:
        images: `(count, channels, height, width)`; zeros surround them, half of the size wide, as a convolution pads.
        num: how many sums.
        size: width and height of a patch, odd.
        stride: how far patches are apart.
        generator: draws the weights.

    Shape:
        Returns `(num, channels, size, size)`, float64.

    Example:
        >>> ones = torch.ones(1, 1, 4, 4)
        >>> patch_sums(ones, 2, 3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 3, 3])
    """
    patches = unfold(images.double(), size, padding=size // 2, stride=stride).transpose(1, 2).flatten(0, 1)
    weights = torch.randn(num, len(patches), generator=generator, dtype=torch.float64)
    return (weights @ patches).view(num, images.shape[1], size, size)
