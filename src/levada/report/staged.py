"""The processes of a run, with what none of them sees alone: torch is loaded where a run has stages, and only then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from levada.runs.processes import Recorded, Stage, Together
from levada.runs.standing import Standing

__all__ = ["read_together"]


def read_together(run: Recorded, events: Sequence[Mapping[str, Any]]) -> Together:
    """Read what the processes of a run say of its blocks, and judge what none of them sees alone.

    Args:
        run: the run.
        events: of its first process.
    """
    return Together(run, events, over_depth=_over_depth)


def _over_depth(
    stages: Sequence[Stage], losses: Sequence[tuple[int, float]], steps: int
) -> tuple[list[dict[str, Any]], Standing]:
    from levada.watching.verdict.stages import over_depth

    return over_depth(stages, losses, steps)
