"""Counts and curves of a benchmark of verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["Rate", "roc_area"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A share `count / of` with its 95 % Wilson interval.

    >>> print(Rate(1, 60))
    1/60 = 1.7% [0.3%, 8.9%]
    """

    count: int
    of: int

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper limit (Wilson 1927)."""
        if not self.of:
            return 0.0, 1.0
        found = stats.binomtest(self.count, self.of).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.count}/{self.of} = {self.value:.1%} [{low:.1%}, {high:.1%}]" if self.of else "0/0"


def roc_area(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Return the area under the ROC curve: how often a true case scores above a false one, ties counted half.

    Args:
        scores: larger for what is more likely true; infinities are allowed, NaN is not.
        labels: what is true.

    >>> roc_area([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError("roc_area: a score is NaN; give what cannot be scored the score of a tie.")
    yes = [s for s, label in zip(scores, labels, strict=True) if label]
    no = [s for s, label in zip(scores, labels, strict=True) if not label]
    return float(stats.mannwhitneyu(yes, no).statistic) / (len(yes) * len(no)) if yes and no else math.nan
