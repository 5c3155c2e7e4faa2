"""The curves of a training: what its events tell of the steps that led to its last weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

__all__ = ["curve"]


def curve(events: Iterable[Mapping[str, Any]], kind: Literal["losses", "evaluation"]) -> dict[int, float]:
    """Put a curve together: a continuation takes back what came after its checkpoint.

    Args:
        events: of a run of kind "train", with their losses as numbers.
        kind: "losses", by step; or "evaluation", by the number of steps done.

    Example:
        >>> events = [{"type": "losses", "first": 0, "loss": [3.0, 2.0]}, {"type": "resumed", "step": 1}]
        >>> curve(events, "losses")
        {0: 3.0}
    """
    found: dict[int, float] = {}  # by number of steps done
    for event in events:
        if event["type"] == "resumed":
            found = {done: loss for done, loss in found.items() if done <= event["step"]}
        elif event["type"] != kind:
            continue
        elif kind == "losses":
            found.update(enumerate(event["loss"], start=event["first"] + 1))
        else:
            found[event["step"]] = event["loss"]
    return {done - 1: loss for done, loss in found.items()} if kind == "losses" else found
