"""The picture of a memory over time: what is left of a gradient steps back, and what of the loss's arrives where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from levada.report.series import Span
from levada.report.words import interval, number

__all__ = ["memory_spec"]

# What is left at the horizon.
LEFT = 1e-3


def memory_spec(finding: Mapping[str, Any]) -> dict[str, Any]:
    """Give the figure of a recurrence: its memory by steps back, and the gradient at each step of the sequence.

    Args:
        finding: with "curves" in its evidence.

    Returns:
        A figure of two panels; of fewer where something was not measured.

    Example:
        >>> curves = {"steps_back": [0, 1, 2], "memory": [1.0, 0.1, 0.01], "steps": [0, 1], "gradient": [0.1, 1.0]}
        >>> len(memory_spec({"evidence": {"curves": curves}})["panels"])
        2
    """
    evidence = finding.get("evidence") or {}
    curves, horizon = evidence.get("curves") or {}, evidence.get("memory_horizon") or {}
    predicted = _line(curves, "steps_back", "memory_predicted", "predicted", "predicted", "memory")
    memory = [*_line(curves, "steps_back", "memory", "memory", "measured", "memory"), *predicted]
    spans: list[Span] = []
    if memory and horizon:
        back: Sequence[Any] = memory[0]["x"]
        memory.append(_level(back, "1/1000 is left", LEFT))
        spans = _horizon(horizon, back[-1])
    arrives = _line(curves, "steps", "gradient", "gradient, over its largest", "measured", "gradient")
    size: dict[str, Any] = {"label": "relative size", "scale": "log"}
    panels: list[dict[str, Any]] = [
        {"title": "Memory", "x": {"label": "steps back"}, "y": size, "series": memory, "spans": spans},
        {"title": "Gradient that arrives at each step", "x": {"label": "step"}, "y": size, "series": arrives},
    ]
    theory = " The prediction knows the gates, or the size of the weights, alone." if predicted else ""
    return {
        "title": "How far back the gradient reaches",
        "caption": f"Memory is what a change of an earlier state does to the last one.{theory}",
        "panels": [panel for panel in panels if panel["series"]],
    }


def _line(curves: Mapping[str, Any], x: str, y: str, label: str, style: str, group: str) -> list[dict[str, Any]]:
    steps, values = curves.get(x), curves.get(y)
    if not isinstance(steps, Sequence) or not isinstance(values, Sequence) or not steps or len(steps) != len(values):
        return []
    read = [number(value) for value in values]
    return [{"label": label, "style": style, "group": group, "x": list(steps), "y": read}]


def _level(steps: Sequence[Any], label: str, value: float) -> dict[str, Any]:
    return {"label": label, "style": "reference", "x": [steps[0], steps[-1]], "y": [value, value]}


def _horizon(told: Mapping[str, Any], last: float) -> list[Span]:
    """Mark the horizon's interval, as far as it lies within what was measured."""
    value, low, high = (number(told.get(key)) for key in ("value", "low", "high"))
    if value is None or low is None or high is None or not math.isfinite(value) or value > last:
        return []
    return [Span(low, min(high, last), "horizon", f"Horizon: {interval(told)} steps")]
