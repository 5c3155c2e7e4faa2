"""How long each block has given nothing but zeros, and how likely that is by its own habit."""

from __future__ import annotations

import math
from typing import Final, final

import torch
from torch import Tensor

__all__ = ["BY_CHANCE", "Silence"]

# How likely so many zeros in a row may be by a block's own habit, as that of one that is drawn to rest.
BY_CHANCE: Final = 1e-4


@final
class Silence:
    r"""For how many samples in a row each signal has been exactly zero, and how likely that is by its own habit.

    A block that is drawn to rest, or that a router leaves out, is zero now and then: with $z$ of $n$ samples zero
    before the present run of $k$, such a run has a chance of $\prod_{j<k} (z + 1 + j) / (n + 2 + j)$, if every share of
    zeros was as likely at the start; that of one that never was other than zero is taken to be $2^{-k}$.

    Args:
        columns: number of signals.

    Attributes:
        run: how many samples in a row have been zero so far.
        last: what each was when it was other than zero last; NaN where it never was.
        sure: how many samples in a row, looks between them left out, found a run that chance does not explain.
        heard: how many samples were other than zero.

    Example:
        >>> silence = Silence(1)
        >>> for value in [1.0] * 18 + [0.0] * 2:
        ...     silence.add(torch.tensor([value]))
        >>> silence.run.tolist(), round(silence.chance.item(), 4)
        ([2], 0.0048)
    """

    def __init__(self, columns: int) -> None:
        self.run = torch.zeros(columns, dtype=torch.long)
        self.last = torch.full((columns,), math.nan, dtype=torch.float64)
        self.sure = torch.zeros(columns, dtype=torch.long)
        self._zeros = torch.zeros(columns, dtype=torch.long)
        self.heard = torch.zeros(columns, dtype=torch.long)

    @property
    def chance(self) -> Tensor:
        """How likely a run of zeros as long as the present one is; 1 where there is none."""
        zeros, count, run = self._zeros.double(), (self._zeros + self.heard).double(), self.run.double()
        log = torch.lgamma(zeros + 1 + run) - torch.lgamma(zeros + 1)
        log = log + torch.lgamma(count + 2) - torch.lgamma(count + 2 + run)
        return torch.where(self.heard == 0, 0.5**run, log.exp())

    @property
    def ever(self) -> Tensor:
        """Whether a signal has ever been other than zero."""
        return self.heard > 0

    def add(self, values: Tensor, *, look: bool = False) -> None:
        """Take one sample, or a look between samples.

        Args:
            values: a value of each signal; NaN where it was not measured, which counts for nothing.
            look: whether it is no sample, so that no rule hears of it.
        """
        zero, other = values == 0, values.abs() > 0
        self._zeros += torch.where(other, self.run, 0)
        self.heard += other
        self.last = torch.where(other, values.double(), self.last)
        self.run = torch.where(zero, self.run + 1, torch.where(other, 0, self.run))
        self.sure = torch.where(self.run == 0, 0, self.sure)
        if not look:
            self.sure = torch.where(zero & (self.chance < BY_CHANCE), self.sure + 1, 0)
