"""What a run says that it kept, and no longer has: samples, levels of segments, kept steps."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from levada._errors import MissingExtraError
from levada.runs.bundles import BUNDLES, bundles_of
from levada.runs.folders import rank_folders
from levada.runs.lost import ALL, Lost, between
from levada.runs.pyramid import FADE
from levada.runs.segments import UnreadableError, places, read_samples
from levada.runs.tables import read_tables
from levada.runs.tail import Samples, read_tail

__all__ = ["absent"]

_LEVELS: Final = ("full", "by16", "by256")


def absent(run: Path, events: Sequence[Mapping[str, Any]]) -> list[Lost]:
    """Say what of a watched run is gone without a trace of damage, by what the run itself tells.

    The event `end` counts the samples, the event `bundle` names a kept step, and of a segment all levels are there but
    those that are let go of in their order. What is damaged, or was moved aside, is told elsewhere.

    Args:
        run: the run's folder.
        events: of the run.
    """
    ends = [event for event in events if event.get("type") == "end"]
    keeps = [keep for end in ends if isinstance(keep := end.get("keep"), int)]
    stored = sum(_number(end.get("samples")) - _number(end.get("dropped")) for end in ends)
    folders = rank_folders(run)
    lost: list[Lost] = []
    if 0 not in folders and stored > 0:
        lost.append(Lost(f"signals/rank-00000 is gone: {stored:,} samples were kept", "signals/rank-00000", ALL, ""))
    for rank, folder in sorted(folders.items()):
        lost += _of_rank(folder, stored if rank == 0 else 0, min(keeps, default=1))
    told = dict.fromkeys(str(event.get("path")) for event in events if event.get("type") == "bundle")
    there = {f"{BUNDLES}/{folder.name}" for folder in bundles_of(run)}
    gone = [path for path in told if path not in there]
    return lost + [Lost(f"{path} was kept, and is no longer there", path, "the kept step", "") for path in gone]


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _of_rank(folder: Path, stored: int, keep: int) -> list[Lost]:
    """Say what of a rank's samples is gone; nothing where something is damaged, which may be why."""
    try:
        segments, levels = _held(folder)
    except (UnreadableError, MissingExtraError, OSError):
        return []
    if segments is None:
        return []
    lost = _without_levels(segments, levels, keep)
    found = sum(len(samples.steps) for samples in segments.values())
    if stored <= found:
        return lost
    gaps = [number for number in range(1, max(segments, default=0)) if number not in segments]
    steps = ""
    if len(gaps) == 1:
        before, after = (segments.get(gaps[0] + side, Samples()).steps for side in (-1, 1))
        steps = between(before[-1] if before else None, after[0] if after else None)
    elif not gaps and segments:
        last = segments[max(segments)].steps
        steps = between(last[-1] if last else None, None)
    message = f"{stored - found:,} samples are gone: {stored:,} were kept, and {found:,} are there"
    return [*lost, Lost(message, f"signals/{folder.name}", ALL, steps)]


def _held(folder: Path) -> tuple[dict[int, Samples] | None, dict[int, set[str]]]:
    """Give the samples of each segment and which levels of it are there; None if something was moved aside or torn."""
    if any(folder.glob("*.torn")):
        return None, {}
    tables, damages = read_tables(folder)
    widths = {number: table.width for number, table in tables.items()}
    segments, levels, tails = dict[int, Samples](), dict[int, set[str]](), dict[int, Path]()
    for place in places(folder):
        if place.level == "tail":
            tails[place.number] = place.path
        elif place.level == "samples":
            segments[place.number] = read_samples(place)
        else:
            levels.setdefault(place.number, set()).add(place.level)
    for number, path in tails.items():
        if number not in segments:
            segments[number], torn = read_tail(path, widths)
            levels[number] = set(_LEVELS)
            damages += torn
    return (None if damages else segments), levels


def _without_levels(segments: Mapping[int, Samples], levels: Mapping[int, set[str]], keep: int) -> list[Lost]:
    """Say which levels are gone that are not let go of: detail goes from the oldest on, but around marks."""
    marks = {step for samples in segments.values() for step in samples.marks}
    lost, newer = [], 0
    for number in sorted(segments, reverse=True):
        steps = segments[number].steps
        if not steps:
            continue
        older = [one for one in segments if one < number and segments[one].steps]
        for level, limit in (("full", keep), ("by16", FADE * keep), ("by256", None)):
            if level in levels.get(number, ()):
                continue
            before = any(level in levels.get(one, ()) and not _marked(segments[one].steps, marks) for one in older)
            if limit is None or newer < limit or before:
                name = f"{level}-{number:06d}"
                lost.append(Lost(f"{name} is gone", name, ALL, f"steps {min(steps):,} to {max(steps):,}"))
        newer += len(steps)
    return lost


def _marked(steps: array[int], marks: set[int]) -> bool:
    """Whether detail stays because of a step that is near, as `levada.runs.pyramid.Kept.near` has it."""
    reach = (max(steps) - min(steps)) / 2
    return any(min(steps) - reach <= mark <= max(steps) + reach for mark in marks)
