"""Depths in one sentence each: how deep such a model trains, and over how many branches its gradient travels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from levada.report.words import number, plain

__all__ = ["depth_lines", "limit"]

_LIMITS: Final[Mapping[str, str]] = {
    "correlation": "by what becomes of differences between inputs",
    "gradient": "by the gradient's size",
    "directions": "by how few directions the gradient keeps",
}


def depth_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each depth that a summary knows.

    Args:
        summary: of the JSON of `levada check`, or of a `Report`.

    Example:
        >>> depth_lines({"trainable_depth": {"value": 21.8, "low": 18.9, "high": 30.1, "predicted": 22.0,
        ...     "limited_by": "correlation", "blocks": 50}})[0][:66]
        'trainable depth: about 22 blocks of 50 (interval 19 to 30; theory '
        >>> depth_lines({"trainable_depth": {"value": "inf", "low": 80.0, "high": "inf", "blocks": 6}})
        ['trainable depth: nothing limits it in these 6 blocks (at least 80)']
    """
    lines = []
    found = summary.get("trainable_depth")
    if isinstance(found, Mapping) and number(found.get("value")) is not None:
        lines.append(f"trainable depth: {_trainable(found)}")
    found = summary.get("effective_depth")
    if isinstance(found, Mapping) and number(found.get("value")) is not None:
        lines.append(
            f"effective depth: the gradient passes {plain(found['value'])} of {found.get('blocks')} residual blocks on "
            f"average ({found.get('shortest')} to {found.get('longest')})"
        )
    return lines


def limit(found: Mapping[str, Any]) -> str:
    """Return what sets a trainable depth, in words; "" if nothing is said of it.

    Args:
        found: the summary's mapping.
    """
    told = _LIMITS.get(str(found.get("limited_by")))
    return f"limited {told}" if told and math.isfinite(number(found.get("value")) or 0.0) else ""


def _trainable(found: Mapping[str, Any]) -> str:
    value, blocks = number(found.get("value")), found.get("blocks")
    low, high, predicted = (number(found.get(key)) for key in ("low", "high", "predicted"))
    if value is None or not math.isfinite(value):
        least = f" (at least {_blocks(low)})" if low is not None and math.isfinite(low) else ""
        return f"nothing limits it in these {blocks} blocks{least}"
    ends = [f"interval {_blocks(low)} to {_blocks(high)}"] if low is not None and high is not None else []
    ends += [f"theory says {_blocks(predicted)}"] if predicted is not None else []
    asides = f" ({'; '.join(ends)})" if ends else ""
    whole = f" of {blocks}" if blocks is not None and value < float(blocks) else f"; the model has {blocks}"
    told = limit(found)
    return f"about {_blocks(value)} blocks{whole}{asides}{', ' + told if told else ''}"


def _blocks(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "any number"
    return f"{value:.0f}" if 10 <= value < 1e6 else plain(value)
