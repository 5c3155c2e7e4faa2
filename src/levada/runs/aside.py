"""Files of signals that were moved aside because they were damaged: what was lost with them, and no more than that."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from levada._errors import MissingExtraError
from levada.runs.codes import NAN
from levada.runs.frames import Damage
from levada.runs.segments import Cut, Place, UnreadableError, is_good, places, read_samples, salvaged
from levada.runs.tables import Table
from levada.runs.tail import Samples, header, read_tail, sample

__all__ = ["set_aside"]

_NAME: Final = re.compile(r"(full|by16|by256|samples|tail)-(\d{6,12})\b")
_TORN: Final = re.compile(r"(\.\d+)?\.torn$")
_NAMED: Final = 4  # sites of a signal that are named one by one


def set_aside(folder: Path, tables: Mapping[int, Table]) -> tuple[list[Damage], list[str]]:
    """Look at the files of a rank that were moved aside: `put_aside` did so.

    Args:
        folder: of the rank.
        tables: its site tables.

    Returns:
        What was lost with them, and the names of those that took nothing: a file with the bytes that such a one had is
        there, a level was made again of the full detail, or all that was in it could be read and stands in a new one.
    """
    torn = {path: _NAME.match(path.name) for path in sorted(folder.glob("*.torn"))}
    numbers = {path: int(match[2]) if match else 0 for path, match in torn.items()}
    good = {
        (each.number, each.level): each
        for each in places(folder)
        if each.number in numbers.values() and each.level != "tail" and is_good(each)
    }
    names = {place.path.name for place in good.values()}
    lost, copies = [], []
    for path, number in numbers.items():
        match = torn[path]
        place = Place(path, match[1] if match else "", number, -1)
        damages = [] if _TORN.sub("", path.name) in names else _taken(place, good, tables)
        lost += damages
        copies += [] if damages else [path.name]
    return lost, copies


def _taken(place: Place, good: Mapping[tuple[int, str], Place], tables: Mapping[int, Table]) -> list[Damage]:
    """Say what is lost with a file: a damage for each stretch of samples, or one for the file; none if nothing is."""
    told = f"{place.path.name} was damaged, and is moved aside"
    name = place.path.name
    whole = [Damage("file", 0, place.path.stat().st_size, told, place.number, file=name)]
    stands, of = good.get((place.number, place.level)), good.get((place.number, "samples"))
    with suppress(UnreadableError, FileNotFoundError, MissingExtraError):
        if place.level == "tail":
            return _of_tail(place, tables)
        if stands is None or of is None:
            return whole
        samples = read_samples(of)
        if place.level == "samples":
            known = not samples.steps or not all(map(math.isnan, samples.times))
            return [] if known else [replace(whole[0], series="times and scalars")]
        table = tables.get(samples.table)
        if table is not None:
            words = _series(_unsaved(place, stands, samples, table), table)
            return [replace(whole[0], series=words)] if words else []
    return whole


def _of_tail(place: Place, tables: Mapping[int, Table]) -> list[Damage]:
    """Say where samples of a tail are lost: the others were sealed."""
    widths = {number: table.width for number, table in tables.items()}
    samples, damages = read_tail(place.path, widths)
    # What is shorter than any sample took a mark, or what says how the file begins.
    least = len(sample(0, 0.0, 0, bytes(2 * widths.get(samples.table, 0)), {}))
    least = max(least, len(header(max(samples.table, 0))) + 1)
    told = f"{place.path.name} was damaged, and is moved aside"
    return [
        replace(damage, message=f"{told}: {damage.message}", segment=place.number, file=place.path.name)
        for damage in damages
        if damage.num_bytes >= least
    ]


def _unsaved(torn: Place, stands: Place, samples: Samples, table: Table) -> set[tuple[int, int]]:
    """Give the series, by signal and site, that the file which stands in the place of a damaged one does not have."""
    cut = Cut.of(torn.level, samples.steps, len(table.sites))
    old, unread = salvaged(torn, cut, len(table.signals))
    new, _ = salvaged(stands, cut, len(table.signals))
    width = len(table.sites)

    def empty(series: tuple[int, int], of: Sequence[Sequence[int]]) -> bool:
        start = (series[0] * width + series[1]) * cut.rows
        return all(code == NAN for plane in of for code in plane[start : start + cut.rows])

    every = ((signal, site) for signal in range(len(table.signals)) for site in range(width))
    return {one for one in every if empty(one, new) and (one in unread or not empty(one, old))}


def _series(lost: set[tuple[int, int]], table: Table) -> str:
    """Say which series are lost.

    Example:
        >>> table = Table(("signal_rms", "gradient_rms"), ({"name": "0"}, {"name": "2"}))
        >>> _series({(0, 0), (0, 1), (1, 1)}, table), _series(set(), table)
        ('signal_rms of all blocks, gradient_rms of 2', '')
    """
    told = []
    for signal, name in enumerate(table.signals):
        sites = sorted(site for of, site in lost if of == signal)
        names = ", ".join(str(table.sites[site]["name"]) for site in sites[:_NAMED])
        more = f" and {len(sites) - _NAMED:,} more" if len(sites) > _NAMED else ""
        told += [f"{name} of {'all blocks' if len(sites) == len(table.sites) else names + more}"] if sites else []
    return ", ".join(told)
