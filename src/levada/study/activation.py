"""What excites a unit most: an image made for it, and the place in given images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from levada._errors import require_at_least

__all__ = ["contact_sheet", "exciting_images", "exciting_patches"]


def exciting_images(
    units: Callable[[Tensor], Tensor], num: int, *, size: int, steps: int, lr: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Make for each unit an image that excites it, by gradient ascent from noise.

    Adam moves the image's Fourier coefficients, each divided by its frequency, so that coarse and fine detail move
    alike; a shift of up to a sixteenth of the size at each step keeps single pixels from counting.

    Args:
        units: images `(num, 3, size, size)` -> the excitation of unit i by image i, `(num,)`.
        num: number of units.
        size: width and height in pixels.
        steps: steps of Adam.
        lr: its learning rate.
        generator: draws the noise and the shifts.

    Returns:
        The images, from -1 to 1, and the excitations before the first step and after the last, `(2, num)`.

    Raises:
        UsageError: if `size` is below 8 or `steps` below 1.

    Example:
        >>> def bright(images): return images.mean((1, 2, 3))
        >>> _, found = exciting_images(bright, 2, size=8, steps=20, lr=0.1, generator=torch.Generator().manual_seed(0))
        >>> bool((found[1] > found[0]).all())
        True

    Source: Erhan, Bengio, Courville and Vincent 2009 (gradient ascent); Olah, Mordvintsev and Schubert 2017, "Feature
    Visualization", Distill (Fourier coefficients, shifts).
    """
    require_at_least("exciting_images", "size", size, 8)
    require_at_least("exciting_images", "steps", steps, 1)
    across, down = torch.fft.rfftfreq(size), torch.fft.fftfreq(size)
    scale = size / (across[None, :].square() + down[:, None].square()).sqrt().clamp_min(1 / size) / size**1.5
    drawn = [torch.randn(num, 3, size, size // 2 + 1, generator=generator) for _ in range(2)]
    waves = (0.02 * torch.complex(*drawn)).requires_grad_()
    optimizer = torch.optim.Adam([waves], lr=lr)

    def image() -> Tensor:
        pixels: Tensor = torch.fft.irfft2(waves * scale, s=(size, size), norm="ortho").tanh()
        return pixels

    with torch.no_grad():
        before = units(image())
    reach = size // 16
    for _ in range(steps):
        shift = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
        loss = -units(image().roll(shift, (2, 3))).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        found = image()
        return found, torch.stack([before, units(found)])


def exciting_patches(maps: Sequence[Tensor], images: Sequence[Tensor], field: int) -> Tensor:
    """Cut for each unit the patch around the place that excites it most, in any of some images.

    Args:
        maps: of each image, the excitation of every unit at every place.
        images: the images.
        field: width of a patch in pixels; less where an image is smaller.

    Shape:
        maps `(units, rows, columns)`, images `(3, height, width)` -> `(units, 3, field, field)`, patches at the rim
        moved inside.

    Example:
        >>> image, place = torch.zeros(3, 8, 8), torch.zeros(1, 4, 4)
        >>> image[:, 6, 2], place[0, 3, 1] = 1.0, 1.0
        >>> exciting_patches([place], [image], 3)[0, 0].nonzero().tolist()
        [[1, 0]]
    """
    side = min(field, *(min(image.shape[1:]) for image in images))
    patches = []
    for unit in range(len(maps[0])):
        best = max(range(len(maps)), key=lambda place: float(maps[place][unit].max()))
        own, image = maps[best][unit], images[best]
        row, column = divmod(int(own.argmax()), own.shape[1])
        corner = []
        for position, places, length in zip((row, column), own.shape, image.shape[1:], strict=True):
            centre = (position + 0.5) * length / places
            corner.append(min(max(round(centre - side / 2), 0), length - side))
        top, left = corner
        patches.append(image[:, top : top + side, left : left + side])
    return torch.stack(patches)


def contact_sheet(images: Tensor, size: int, gap: int = 2) -> Tensor:
    """Put images one below the other, as uint8 pixels.

    Args:
        images: from -1 to 1.
        size: width and height that each is brought to.
        gap: white pixels between them.

    Shape:
        `(num, 3, height, width)` -> `(num * (size + gap) - gap, size, 3)`.

    Example:
        >>> contact_sheet(torch.zeros(3, 3, 5, 5), 8).shape
        torch.Size([28, 8, 3])
    """
    small = functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    pixels = ((small.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    padded = functional.pad(pixels, (0, 0, 0, 0, 0, gap), value=255)
    return padded.flatten(0, 1)[: len(images) * (size + gap) - gap]
