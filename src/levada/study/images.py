"""How networks for small images are trained: augmentation, and a learning rate that falls twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import require_at_least
from levada.study.data import Dataset

__all__ = ["Alone", "Augment", "in_steps", "standardised"]


def in_steps(warmup: float = 0.0) -> Callable[[float], float]:
    """Give a schedule: a tenth of the learning rate from half of the training on, a hundredth from three quarters on.

    Args:
        warmup: share of the training at whose beginning the rate is a tenth.

    Returns:
        Share of the steps done -> factor.

    Example:
        >>> [in_steps(0.01)(progress) for progress in (0.0, 0.01, 0.49, 0.5, 0.75)]
        [0.1, 1.0, 1.0, 0.1, 0.01]

    Source: He, Zhang, Ren and Sun 2015, arXiv 1512.03385, section 4.2.
    """

    def factor(progress: float) -> float:
        if progress < warmup:
            return 0.1
        return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01

    return factor


def standardised(data: Dataset, *, pool: int = 1, device: torch.device | str = "cpu") -> Dataset:
    """Return images as float32, each channel with mean 0 and standard deviation 1 over the training set.

    Args:
        data: images, uint8, `(num, height, width)` or `(num, channels, height, width)`.
        pool: side of the squares over which the mean is taken first.
        device: where the images go.

    Raises:
        UsageError: if `pool` is below 1.
    """
    require_at_least("standardised", "pool", pool, 1)

    def pooled(images: Tensor) -> Tensor:
        images = images if images.dim() == 4 else images.unsqueeze(1)
        parts = [functional.avg_pool2d(part.to(device, torch.float32), pool) for part in torch.split(images, 1000)]
        return torch.cat(parts)

    train, test = pooled(data.train_inputs), pooled(data.test_inputs)
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    return replace(
        data,
        train_inputs=(train - mean) / deviation,
        test_inputs=(test - mean) / deviation,
        train_targets=data.train_targets.to(device),
        test_targets=data.test_targets.to(device),
    )


@final
class Augment(nn.Module):
    """In training, cut each image out of itself with a margin of zeros, and mirror half of them.

    Args:
        padding: width of the margin.
        seed: of the draws, which are the module's own.

    Shape:
        `(batch, channels, height, width)`, unchanged.

    Example:
        >>> augment = Augment(4, seed=0)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> augment(images).shape, torch.equal(augment.eval()(images), images)
        (torch.Size([2, 3, 32, 32]), True)

    Source: He, Zhang, Ren and Sun 2015, arXiv 1512.03385, section 4.2, after Lee et al. 2015, arXiv 1409.5185.
    """

    def __init__(self, padding: int, *, seed: int) -> None:
        super().__init__()
        require_at_least("Augment", "padding", padding, 0)
        self.padding = padding
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images, cut and mirrored anew."""
        if not self.training:
            return x
        batch, _, height, width = x.shape
        drawn = torch.randint(2 * self.padding + 1, (2, batch, 1), generator=self._generator)
        mirrored = torch.rand(batch, 1, generator=self._generator) < 0.5
        rows = drawn[0] + torch.arange(height)
        columns = torch.arange(width)
        columns = drawn[1] + torch.where(mirrored, columns.flip(0), columns)
        padded = functional.pad(x, [self.padding] * 4)
        index = [i.to(x.device) for i in (torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None])]
        return padded.movedim(1, -1)[index[0], index[1], index[2]].movedim(-1, 1)


@final
class Alone(nn.Module):
    """Make one network one replica, as the training loop has several.

    Args:
        network: maps `(batch, ...)` to `(batch, classes)`.

    Shape:
        `(batch, 1, ...)` -> `(batch, 1, classes)`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        return self.network(x.squeeze(1)).unsqueeze(1)  # type: ignore[no-any-return]
