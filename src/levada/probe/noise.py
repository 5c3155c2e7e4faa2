r"""How much of a gradient is the same from one batch to the next: signal over noise, of each group of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Noise"]


@dataclass(slots=True)
class _Sums:
    """Of one parameter's gradients: their sum, the sum of their squared norms, and how many came."""

    total: Tensor
    square: Tensor
    count: int = 1


@final
class Noise:
    r"""The signal-to-noise ratio of gradients: the size of their mean over their standard deviation.

    Of $n$ gradients $g_1, \dots, g_n$ with mean $\bar g$, over all elements together,
    $$ s^2 = \frac{\sum_i \|g_i - \bar g\|^2}{n - 1}, \qquad
       \mathrm{snr} = \sqrt{\frac{\max(0,\ \|\bar g\|^2 - s^2 / n)}{s^2}}, $$
    unit 1: root mean squares per element, so that it says nothing about size. $s^2$ and $\|\bar g\|^2 - s^2/n$ are
    without bias; their quotient is too large by a factor of about $1 + 2/(d (n - 1))$ for $d$ independent elements.
    Half of all estimates of a signal that is not there are positive: $\mathrm{snr}^2$ then scatters about zero by
    $\sqrt{2/d}/n$. Over the steps of a run the gradient changes because the parameters do, which counts as noise.

    Adam divides the mean of the last $1/(1-\beta_1)$ gradients by their root mean square: below
    $\sqrt{1-\beta_1}$, 0.32 for 0.9, the direction of its steps is mostly noise.

    Cost: one copy of the gradients; two passes over them for each `add`.

    Example:
        >>> noise = Noise()
        >>> for value in (3.0, 5.0):
        ...     noise.add({"w": torch.full((2,), value)})
        >>> round(noise.ratio(["w"]), 3)   # mean 4, variance 2 of each element: sqrt((16 - 1) / 2)
        2.739

    Source: McCandlish et al. 2018, arXiv 1812.06162 (the noise scale is its inverse square); Kingma and Ba 2015, arXiv
    1412.6980 (Adam's ratio of moments).
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, gradients: Mapping[str, Tensor | None], scale: float | Tensor = 1.0) -> None:
        """Take the gradients of one batch; those that are None or sparse are passed over.

        Args:
            gradients: by parameter.
            scale: what the loss was multiplied by.
        """
        with torch.no_grad():
            for name, gradient in gradients.items():
                if gradient is None or gradient.layout is not torch.strided:
                    continue
                value = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32)) / scale
                square = torch.linalg.vector_norm(value, dtype=torch.float64).square()
                held = self._sums.get(name)
                if held is None:
                    self._sums[name] = _Sums(value, square)
                else:
                    held.total.add_(value)
                    held.square = held.square + square
                    held.count += 1

    def ratio(self, names: Iterable[str]) -> float:
        """Return the ratio of all the named parameters together; NaN with fewer than two gradients, or none at all.

        Args:
            names: of parameters.
        """
        signal = noise = 0.0
        for held in (self._sums[name] for name in names if name in self._sums and self._sums[name].count > 1):
            mean = float(torch.linalg.vector_norm(held.total, dtype=torch.float64).square()) / held.count**2
            variance = max(0.0, float(held.square) - held.count * mean) / (held.count - 1)
            signal += mean - variance / held.count
            noise += variance
        if not noise > 0:
            return math.inf if signal > 0 else math.nan
        return math.sqrt(max(0.0, signal) / noise)

    def by_site(self, parameters: Iterable[Iterable[str]]) -> Tensor:
        """Return the ratio of each site's parameters.

        Args:
            parameters: names, of each site.
        """
        return torch.tensor([self.ratio(names) for names in parameters], dtype=torch.float64)
