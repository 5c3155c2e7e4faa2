"""A finding beside what was measured, for what tells what else could have explained it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from levada.diagnose.facts import Facts
from levada.diagnose.finding import Finding
from levada.probe.trace import Trace

__all__ = ["Case", "Sentences"]


@dataclass(frozen=True, slots=True)
class Case:
    """A finding, and what was measured.

    Attributes:
        finding: as its rule made it.
        trace: that the rule read.
        facts: of the trace.
    """

    finding: Finding
    trace: Trace
    facts: Facts

    @property
    def span(self) -> range:
        """Numbers of the blocks that the finding names."""
        names = self.trace.names()
        ends = [names.index(site) for key in ("first", "last") if (site := self.finding.where.get(key)) in names]
        return range(min(ends), max(ends) + 1) if ends else range(0)

    def largest(self, signal: str) -> float | None:
        """Return the largest mean over draws of a signal at those blocks; None where it was not measured.

        Args:
            signal: its name.
        """
        means = self.trace[signal].nanmean(0).tolist()
        known = [means[i] for i in self.span if math.isfinite(means[i])]
        return max(known) if known else None


Sentences: TypeAlias = Iterator[str]
