"""What the blocks of a run have been so far: without a gradient, or off, and for how long; and their longest steps."""

from __future__ import annotations

import math
from typing import final

import torch

from levada.watching.measure.sample import WATCHED, Sample
from levada.watching.steps.alike import Rows
from levada.watching.steps.silence import Silence
from levada.watching.verdict.rules.units import DEAD, squashed
from levada.watching.verdict.view import values_of

__all__ = ["Habits"]


@final
class Habits:
    """Follows the blocks of a run from sample to sample.

    Args:
        sites: number of blocks.
        rows: of the batches so far, which are no blocks'.

    Attributes:
        silence: of the gradients of each block's weights, to which looks between samples are added.
        off: for how long all units of a block but one in a thousand have been off, as `silence`.
        longest: per block, the largest `update_ratio`; NaN as long as none was measured.
        seen: signals that were measured at some block, and "tanh" where one was seen to end with a tanh.
        rows: of the batches that the model was given.

    Example:
        >>> habits = Habits(2)
        >>> for ratio in (1e-3, 4e-3, math.inf):
        ...     habits.sampled(Sample(0, 0.0, {"update_ratio": torch.tensor([ratio, math.nan]).double()}))
        >>> [round(one, 4) for one in habits.longest.tolist()]
        [0.004, nan]
    """

    def __init__(self, sites: int, rows: Rows | None = None) -> None:
        self.silence, self.off = Silence(sites), Silence(sites)
        self.longest = torch.full((sites,), math.nan, dtype=torch.float64)
        self.seen: set[str] = set()
        self.rows = Rows() if rows is None else rows

    def sampled(self, sample: Sample) -> None:
        """Take a sample.

        Args:
            sample: it.
        """
        sites = len(self.longest)
        self.rows.sampled(sample)
        self.seen |= {s for s in WATCHED if s not in self.seen and bool(values_of(sample, s, sites).isfinite().any())}
        self.seen |= {"tanh"} if squashed(sample, sites) else set()
        self.silence.add(values_of(sample, "weight_gradient_rms", sites))
        on = 1 - values_of(sample, "zero_fraction", sites)
        self.off.add(torch.where(on <= 1 - DEAD, 0.0, on))
        ratio = values_of(sample, "update_ratio", sites)
        self.longest = torch.fmax(self.longest, torch.where(ratio.isinf(), math.nan, ratio))
