r"""Path lengths of residual networks: over how many branches the gradient really travels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least

__all__ = ["PathLengths", "path_lengths"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class PathLengths:
    """Distribution of the squared gradient over the number of branches that it passed.

    Attributes:
        weights: share of each length from 0 to the depth; float64, shape `(depth + 1,)`, sums to 1.

    Example:
        >>> round(path_lengths([1.0] * 54).share(5, 17), 7)      # 54 blocks, half of them passed on average
        0.0045367
    """

    weights: Tensor

    @property
    def mean(self) -> float:
        """Effective depth, in blocks."""
        return float((self._lengths() * self.weights).sum())

    @property
    def variance(self) -> float:
        """Variance of the length, in blocks squared."""
        return float(((self._lengths() - self.mean).square() * self.weights).sum())

    def share(self, first: int, last: int) -> float:
        """Share of the gradient on paths of `first` to `last` branches, both included.

        Args:
            first: shortest length counted.
            last: longest length counted.

        Returns:
            A number between 0 and 1.
        """
        return float(self.weights[max(first, 0) : last + 1].sum())

    def interval(self, coverage: float = 0.95) -> tuple[int, int]:
        """Lengths between which the central part of the gradient lies.

        Args:
            coverage: the part, between 0 and 1; as much is left out on each side.

        Returns:
            The shortest and the longest of these lengths.

        Raises:
            UsageError: if `coverage` is not between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise UsageError(f"PathLengths.interval: coverage must be between 0 and 1, got {coverage}.")
        tail, below = (1 - coverage) / 2, self.weights.cumsum(0)
        longest = len(self.weights) - 1
        return int((below < tail).sum()), min(int((below < 1 - tail).sum()), longest)

    def _lengths(self) -> Tensor:
        return torch.arange(len(self.weights), dtype=torch.float64, device="cpu")


def path_lengths(branch_gains: Sequence[float]) -> PathLengths:
    r"""Distribution of path lengths in $h + f_l(h)$, from each branch's gain $a_l$ on the gradient's root mean square.

    Squared norms of independent paths add, so that each block is passed through its branch with probability
    $p_l = a_l^2/(1 + a_l^2)$, independently: a Poisson-binomial distribution of mean $\sum_l p_l$ and variance
    $\sum_l p_l(1-p_l)$. Equal gains give a binomial of mean $L\,a^2/(1+a^2)$. The gains are relative to the skip's.

    Args:
        branch_gains: $a_l$, one per block: the gradient that comes through the branch over that through the skip.

    Returns:
        The distribution.

    Raises:
        UsageError: if there are no gains, or one is negative.

    Example:
        >>> round(path_lengths([0.5] * 20).mean, 12)
        4.0

    Source: Veit, Wilber, Belongie 2016, arXiv 1605.06431.
    """
    if len(branch_gains) == 0:
        raise UsageError("path_lengths: branch_gains must have one gain per block, got none.")
    weights = torch.ones(1, dtype=torch.float64, device="cpu")
    for gain in branch_gains:
        require_at_least("path_lengths", "branch gain", gain, 0.0)
        passed = gain**2 / (1 + gain**2)
        nothing = weights.new_zeros(1)
        weights = torch.cat([weights * (1 - passed), nothing]) + torch.cat([nothing, weights * passed])
    return PathLengths(weights)
