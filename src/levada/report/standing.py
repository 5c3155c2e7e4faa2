"""What a page calls a watched run, in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from levada.report.words import headline
from levada.runs.standing import Standing

__all__ = ["headline_of"]


def headline_of(standing: Standing, fired: Sequence[Mapping[str, Any]]) -> str:
    """Say in a line what a run may be called.

    Args:
        standing: of the run.
        fired: the findings that hold.
    """
    if standing.verdict == "healthy":
        rest = f"{standing.until[1:]}; what came after was not sampled" if standing.until else ""
        seen = "vanishing_gradient" in standing.judged  # else no gradient was measured, or of too few blocks
        told = "The learning signal reached every block" if seen else "The rules that could judge it found nothing"
        return f"{told}{rest}"
    if standing.verdict == "unknown":
        return standing.headline
    return headline({"verdict": standing.verdict, "findings": fired})
