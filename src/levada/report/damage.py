"""What of a run is damaged, in words: what is missing on its page, and which steps that takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from levada.report.words import count
from levada.runs.bundles import BUNDLES, Kept
from levada.runs.frames import MAGIC
from levada.runs.lost import TOLD, Lost, between, step_of

__all__ = ["of_absent", "of_bundles", "of_events", "of_manifest", "of_rank", "of_signals"]

MAX_TOLD: Final = 12


def of_signals(read: Mapping[int, Any]) -> list[str]:
    """Say what of the signals cannot be read, as far as it was looked at.

    Args:
        read: the signals of each rank, as `levada.runs.Signals` gives them.
    """
    told = []
    for rank, signals in read.items():
        whose = of_rank(rank, read)
        for lost in signals.lost():
            taken = f" Missing or shown in less detail: {lost.taken}." if lost.taken else ""
            told.append(f"Signals{whose}: {lost.message}.{taken}")
    more = [f"{len(told) - MAX_TOLD:,} more damages of signals are not listed."] if len(told) > MAX_TOLD else []
    return [*told[:MAX_TOLD], *more]


def of_rank(rank: int, ranks: Collection[int]) -> str:
    """Name a process where there are several; "" where there is one.

    Example:
        >>> of_rank(0, [0]), of_rank(1, [0, 1])
        ('', ' of rank 1')
    """
    return f" of rank {rank}" if len(ranks) > 1 or rank else ""


def of_bundles(kept: Iterable[Kept]) -> list[str]:
    """Say which kept steps cannot be run again, and what of them can be used all the same.

    Args:
        kept: of a run.
    """
    return [
        f"The kept step {BUNDLES}/{one.folder.name} cannot be run again: {one.damage}. {one.left}"
        for one in kept
        if one.damage
    ]


def of_absent(lost: Iterable[Lost]) -> list[str]:
    """Say what a run kept, by what it says, and no longer has.

    Args:
        lost: as `levada.runs.absent.absent` gives it.
    """
    return [f"{one.message}.{f' Missing: {one.steps}.' if one.steps else ''}" for one in lost]


def of_manifest(uncertain: Sequence[str]) -> list[str]:
    """Say what of a manifest that was written again is not certain.

    Args:
        uncertain: names of its fields.

    Example:
        >>> of_manifest(["name", "created"])
        ['The manifest was damaged and is written again. Not certain: name, created.']
    """
    told = f"The manifest was damaged and is written again. Not certain: {', '.join(uncertain)}."
    return [told] if uncertain else []


def of_events(events: Sequence[Mapping[str, Any]], damage: str) -> list[str]:
    """Say what of the events cannot be read: at the end, and where a run that went on, or was mended, moved it aside.

    Args:
        events: those that can be read.
        damage: what keeps the log from being read to its end; empty if nothing does.

    Example:
        >>> of_events([{"type": "loss", "steps": [0, 1], "values": [2.0, 1.0]}], "its checksum differs")
        ['The event log: its checksum differs. Missing: what it told after step 1.']
    """
    told = [_mended(events, i) for i, event in enumerate(events) if event.get("type") == "repaired"]
    if damage:
        told.append(f"The event log: {damage}. {_missing(events, ())}")
    return told


def _mended(events: Sequence[Mapping[str, Any]], at: int) -> str:
    """Say what a mended damage took: what stood between the events around the one that tells of it."""
    event = events[at]
    size, kept = event.get("num_bytes"), event.get("good_frames_kept")
    what = count(size, "byte") if isinstance(size, int) else "what followed"
    aside = event.get("moved_to")
    moved = f"{what} could not be read, and were moved to {aside}" if aside else "it was empty"
    # A file's first bytes say what it is, and tell of no step.
    whole = (event.get("at"), size) == (0, len(MAGIC))
    taken = "No event is missing." if whole else _missing(events[:at], events[at + 1 :])
    saved = f" Of what follows, {count(kept, 'event')} could be kept." if isinstance(kept, int) and kept else ""
    return f"The event log: {moved}. {taken}{saved}"


def _missing(before: Sequence[Mapping[str, Any]], behind: Sequence[Mapping[str, Any]]) -> str:
    return f"Missing: {TOLD} {between(step_of(reversed(before), -1), step_of(behind, 0)) or 'there'}."
