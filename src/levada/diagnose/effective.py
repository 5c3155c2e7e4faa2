"""The effective depth of a residual model in a check: one more pass forward, and two back."""

from __future__ import annotations

from typing import Any

from levada._errors import MeasurementError, UsageError
from levada.diagnose.passes import Run
from levada.probe import estimated_path_lengths
from levada.probe.linearisation import Linearisation

__all__ = ["effective_depth"]


def effective_depth(run: Run) -> dict[str, Any] | str:
    """Return over how many residual branches a random cotangent travels on average, or why that is not known.

    Args:
        run: the model on its batches.

    Returns:
        The mean ("value", in blocks) and the 2.5 % and 97.5 % quantiles over paths ("shortest", "longest"), and how
        many residual blocks there are ("blocks"). The mean is that of `levada.probe.estimated_path_lengths`.

    Source: Veit, Wilber, Belongie 2016, arXiv 1605.06431.
    """
    if not run.pace.allows("the effective depth", 1, 2):
        return "the budget was spent before it"
    try:
        found = estimated_path_lengths(Linearisation(run.model, run.batches[0], run.seed), seed=run.seed)
    except (MeasurementError, UsageError, RuntimeError) as error:
        return str(error).partition(". ")[0].removeprefix("effective depth: ").removesuffix(".")
    low, high = found.interval()
    return {"value": found.mean, "shortest": low, "longest": high, "blocks": len(found.weights) - 1}
