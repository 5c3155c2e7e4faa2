"""Which processes of a watched run that has ended never said their end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from levada.runs.ending import ended
from levada.runs.findings import first_of
from levada.runs.folders import rank_folders
from levada.runs.frames import Damage, scan
from levada.runs.lock import is_held
from levada.runs.rank_log import RANK_LOG
from levada.runs.segments import places

__all__ = ["lacking_ends", "without_end"]

_NAMED: Final = 8


def without_end(run: Path, events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Find the processes, other than the first, that were killed: an end seals what was measured, and theirs is open.

    One that still writes is none of them, nor one of before another process went on with the run.

    Args:
        run: the run's folder.
        events: of its first process; nobody is named before that one has ended.
    """
    if not ended(events):
        return []
    first = first_of(events)
    return [
        rank
        for rank, folder in sorted(rank_folders(run).items())
        if rank and _open(folder) and not is_held(folder) and first_of([*_told(folder)]) == first
    ]


def _open(folder: Path) -> bool:
    found = places(folder)
    sealed = {place.number for place in found if place.level == "samples"}
    return any(place.level == "tail" and place.number not in sealed for place in found)


def _told(folder: Path) -> Iterator[dict[str, Any]]:
    if (folder / RANK_LOG).is_file():
        with (folder / RANK_LOG).open("rb") as file:
            yield from (found.event for found in scan(file) if not isinstance(found, Damage))


def lacking_ends(ranks: Sequence[int]) -> str:
    """Say that processes have no end; "" of none.

    Args:
        ranks: of the processes.

    Example:
        >>> lacking_ends([1])
        'process 1 has no end: it was killed, or its machine went down'
        >>> lacking_ends(range(1, 12))[:40]
        'processes 1, 2, 3, 4, 5, 6, 7, 8 and 3 m'
    """
    if not ranks:
        return ""
    if len(ranks) == 1:
        return f"process {ranks[0]} has no end: it was killed, or its machine went down"
    named = ", ".join(map(str, ranks[:_NAMED])) + (f" and {len(ranks) - _NAMED:,} more" * (len(ranks) > _NAMED))
    return f"processes {named} have no end: they were killed, or their machines went down"
