"""What of a run is damaged, in words: what is missing on its page, and which steps that takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from levada.report.words import count

__all__ = ["of_events", "of_signals"]

MAX_TOLD: Final = 12


def of_signals(read: Mapping[int, Any]) -> list[str]:
    """Say what of the signals cannot be read, as far as it was looked at.

    Args:
        read: the signals of each rank, as `levada.runs.Signals` gives them.
    """
    told = []
    for rank, signals in read.items():
        for message, where in signals.lost():
            taken = f" Missing or shown in less detail: {where}." if where else ""
            told.append(f"Signals of rank {rank}: {message}.{taken}")
    more = [f"{len(told) - MAX_TOLD:,} more damages of signals are not listed."] if len(told) > MAX_TOLD else []
    return [*told[:MAX_TOLD], *more]


def of_events(events: Sequence[Mapping[str, Any]], damage: str) -> list[str]:
    """Say what of the events cannot be read: at the end, and where a run that went on, or was mended, moved it aside.

    Args:
        events: those that can be read.
        damage: what keeps the log from being read to its end; empty if nothing does.

    Example:
        >>> of_events([{"type": "loss", "steps": [0, 1], "values": [2.0, 1.0]}], "its checksum differs")
        ['The event log: its checksum differs. Missing: what it told after step 1.']
    """
    told = []
    for i, event in enumerate(events):
        if event.get("type") == "repaired":
            ends = [("after", _last(reversed(events[:i]))), ("before", _last(events[i + 1 :], first=True))]
            size = event.get("num_bytes")
            what = f"{count(size, 'byte')} " if isinstance(size, int) else ""
            told.append(
                f"The event log: {what}behind a damage were moved to {event.get('moved_to')}. {_missing(ends, event)}"
            )
    if damage:
        told.append(f"The event log: {damage}. {_missing([('after', _last(reversed(events)))], {})}")
    return told


def _missing(ends: Iterable[tuple[str, int | None]], event: Mapping[str, Any]) -> str:
    kept = event.get("good_frames_kept")
    saved = f", but for {count(kept, 'event')} that could be saved" if isinstance(kept, int) and kept else ""
    where = " and ".join(f"{word} step {step:,}" for word, step in ends if step is not None)
    return f"Missing: what it told {where or 'there'}{saved}."


def _last(events: Iterable[Mapping[str, Any]], *, first: bool = False) -> int | None:
    """Give the step of the first of these events that has one."""
    for event in events:
        steps = event.get("steps")
        step = steps[0 if first else -1] if isinstance(steps, list) and steps else event.get("step")
        if isinstance(step, int):
            return step
    return None
