"""Sealed files of signals: immutable, each with the checksum of all its bytes in its name.

A tail NNNNNN is sealed into four files, each written under another name, forced to the disk and then renamed:

    by256-NNNNNN-CRC32, by16-NNNNNN-CRC32   minimum, mean and maximum of blocks of 256 and 16 samples
    full-NNNNNN-CRC32                       every sample
    samples-NNNNNN-CRC32                    steps, times, scalars and marks; written last: with it the tail is sealed

They are Parquet (`.parquet`) where pyarrow is installed, and compressed frames (`.frames`) where it is not.
"""

from __future__ import annotations

import os
import re
import zlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from levada._errors import MissingExtraError
from levada.runs.codes import NAN
from levada.runs.frames import Damage
from levada.runs.manifest import sync_folder, write_atomically
from levada.runs.pyramid import SPANS, blocks, coarsen, coarsen_by_arrow
from levada.runs.tables import Table
from levada.runs.tail import NEWER, NewerError, Samples, UnreadableError, read_tail

__all__ = [
    "LEVELS",
    "MAX_FILE",
    "Cut",
    "NewerError",
    "Place",
    "UnreadableError",
    "damaged",
    "form_of",
    "has_parquet",
    "is_good",
    "lacking",
    "newest",
    "of_tail",
    "orphaned",
    "places",
    "put_aside",
    "read_planes",
    "read_samples",
    "read_steps",
    "reduced",
    "remove",
    "remove_tail",
    "salvaged",
    "seal",
    "seal_tail",
    "sealed_name",
    "tail_name",
    "verified",
]

LEVELS: Final = ("by256", "by16", "full", "samples")
MAX_FILE: Final = 2**30
# What a parser raises on bytes that are not its format.
_BROKEN: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OSError,
    ArithmeticError,
    StopIteration,
    NotImplementedError,
    RecursionError,
    MemoryError,
)
_SEALED: Final = re.compile(r"(full|by16|by256|samples)-(\d{6,12})-([0-9a-f]{8})\.(parquet|frames)")
_NUMBER: Final = re.compile(r"(?:full|by16|by256|samples|tail)-(\d{6,12})\b")
_TAIL: Final = re.compile(r"tail-(\d{6,12})\.log")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part of the signals lies: `level` is one of `LEVELS`, or "tail"."""

    path: Path
    level: str
    number: int
    checksum: int


def sealed_name(level: str, number: int, data: bytes, suffix: str) -> str:
    """Give the name of a sealed file.

    Example:
        >>> sealed_name("full", 3, b"PAR1", "parquet")
        'full-000003-424208a5.parquet'
    """
    return f"{level}-{number:06d}-{zlib.crc32(data):08x}.{suffix}"


def tail_name(number: int) -> str:
    """Give the name of a tail."""
    return f"tail-{number:06d}.log"


def places(folder: Path) -> list[Place]:
    """Find tails and sealed files, by number."""
    found = []
    for path in folder.iterdir():
        if match := _SEALED.fullmatch(path.name):
            found.append(Place(path, match[1], int(match[2]), int(match[3], 16)))
        elif match := _TAIL.fullmatch(path.name):
            found.append(Place(path, "tail", int(match[1]), -1))
    return sorted(found, key=lambda place: (place.number, place.level, place.path.name))


def has_parquet() -> bool:
    """Say whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def form_of(suffix: str) -> ModuleType:
    """Give the module that packs and unpacks a kind of file, "parquet" or "frames"."""
    from levada.runs import packed, parquet

    return {"parquet": parquet, "frames": packed}[suffix]


def verified(place: Place) -> bytes:
    """Give the bytes of a sealed file.

    Raises:
        UnreadableError: if they are not those that were written.
        FileNotFoundError: if the file is no longer kept.
    """
    with place.path.open("rb") as file:
        # Python takes memory for all that is asked for, however little comes.
        content = file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE) + 1)
    if len(content) > MAX_FILE:
        raise UnreadableError(f"it is longer than {MAX_FILE:,} bytes")
    if zlib.crc32(content) != place.checksum:
        raise UnreadableError("its bytes are not those whose checksum is in its name")
    return content


def is_good(place: Place) -> bool:
    """Say whether a sealed file is there, with the bytes that were written."""
    try:
        verified(place)
    except (UnreadableError, FileNotFoundError):
        return False
    return True


def seal(
    folder: Path, number: int, samples: Samples, signals: Sequence[str], sites: Sequence[Mapping[str, Any]], suffix: str
) -> list[Path]:
    """Write the four files of a tail; it may be removed when they are there.

    Args:
        folder: of the rank.
        number: of the tail.
        samples: what it holds.
        signals: names of the signals.
        sites: the site table.
        suffix: "parquet" or "frames".

    Raises:
        OSError: if the disk refuses; what was there before is untouched.
    """
    form, rows = form_of(suffix), len(samples.steps)
    # Marks without samples are kept, and have no levels.
    levels = LEVELS if rows else ("samples",)
    series = samples.series(len(signals) * len(sites))
    written = []
    for level in levels:
        if level == "samples":
            data = form.pack_samples(samples)
        else:
            planes = reduced(series, rows, level, suffix)
            data = form.pack_planes(level, samples, planes, signals, sites)
        path = folder / sealed_name(level, number, data, suffix)
        write_atomically(path, data)
        written.append(path)
    return written


def reduced(series: array[int], rows: int, level: str, suffix: str) -> Sequence[array[int]]:
    """Give what the file of a level holds: the codes, or minimum, mean and maximum of its blocks."""
    if level == "full":
        return (series,)
    return (coarsen_by_arrow if suffix == "parquet" else coarsen)(series, rows, SPANS[level])


def seal_tail(folder: Path, number: int, tables: Mapping[int, Table], suffix: str) -> Samples:
    """Seal a tail that no one writes to, and remove it, or move it aside if bytes in it were changed.

    Raises:
        OSError: if the disk refuses; the tail is then still there.
        NewerError: if a newer levada wrote it; likewise.
    """
    path = folder / tail_name(number)
    samples, damages = _read_own(path, tables)
    table = tables.get(samples.table, Table((), ()))
    if samples.steps or samples.marks:
        seal(folder, number, samples, table.signals, table.sites, suffix)
    _let_go(path, damages)
    return samples


def remove_tail(folder: Path, number: int, tables: Mapping[int, Table]) -> None:
    """Remove a tail that is sealed, and whose writer was killed before it did so itself."""
    path = folder / tail_name(number)
    with suppress(FileNotFoundError):
        _let_go(path, _read_own(path, tables)[1])


def _read_own(path: Path, tables: Mapping[int, Table]) -> tuple[Samples, list[Damage]]:
    """Read a tail that is to be changed."""
    samples, damages = read_tail(path, {key: table.width for key, table in tables.items()})
    for damage in damages:
        if damage.kind == NEWER:
            raise NewerError(damage.message)
    return samples, damages


def _let_go(path: Path, damages: Sequence[Damage]) -> None:
    # A frame that was torn off by a crash was never whole; anything else is kept for who wants to look at it.
    if any(damage.kind != "incomplete" for damage in damages):
        put_aside(path)
    else:
        remove(path)


def remove(path: Path) -> None:
    """Remove a file; where a reader has it open and the system forbids it, the next writer or sealing does so."""
    with suppress(PermissionError):
        path.unlink(missing_ok=True)


def put_aside(path: Path) -> None:
    """Give a damaged file a name that ends in `.torn`, and that no other has."""
    stem, count = path.name.removesuffix(".log"), 1
    while (target := path.with_name(f"{stem}.torn" if count == 1 else f"{stem}.{count}.torn")).exists():
        count += 1
    with suppress(PermissionError):  # as `remove`
        path.replace(target)
        sync_folder(path.parent)


def newest(folder: Path) -> int:
    """Give the largest number of a tail or sealed file, also of what was moved aside; 0 if there is none."""
    numbers = (_NUMBER.match(path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in numbers if match), default=0)


def salvaged(place: Place, cut: Cut, num_signals: int) -> tuple[list[array[int]], set[tuple[int, int]]]:
    """Give all codes of a level's file that can be read, NaN for the others; and whose they are, by signal and site."""
    planes = [array("h", [NAN]) * (num_signals * cut.num_sites * cut.rows) for _ in range(cut.width)]
    lost = set(product(range(num_signals), range(cut.num_sites)))
    form = form_of("parquet" if ".parquet" in place.path.name else "frames")  # the name may end in `.torn`
    with place.path.open("rb") as file:
        content = file.read(MAX_FILE)
    with suppress(UnreadableError, *_BROKEN):
        for signal in range(num_signals):
            for span, part in form.unpack_planes(content, cut, signal, range(cut.num_sites), salvage=True):
                start = (signal * cut.num_sites + span.start) * cut.rows
                for plane, codes in zip(planes, part, strict=True):
                    plane[start : start + len(codes)] = codes
                lost -= {(signal, site) for site in span}
    return planes, lost


def read_samples(place: Place) -> Samples:
    """Read what a sealed tail held, but for its codes.

    Raises:
        UnreadableError: if it is not what was written.
    """
    samples: Samples = _read(place, lambda form, content: form.unpack_samples(content))
    return samples


def read_steps(place: Place) -> tuple[int, list[int]]:
    """Read the number of the site table and the steps of a sealed file of the full detail.

    Raises:
        UnreadableError: if it is not what was written, or has no rows.
    """
    found: tuple[int, list[int]] = _read(place, lambda form, content: form.unpack_steps(content))
    return found


@dataclass(frozen=True, slots=True)
class Cut:
    """How the file of a level is cut: its level, the first step of each row, and how many sites its table has."""

    level: str
    steps: Sequence[int]
    num_sites: int

    @property
    def rows(self) -> int:
        """Number of rows of a site."""
        return len(self.steps)

    @property
    def width(self) -> int:
        """Number of codes of a row: the code, or minimum, mean and maximum."""
        return 1 if self.level == "full" else 3

    @classmethod
    def of(cls, level: str, steps: Sequence[int], num_sites: int) -> Cut:
        """Cut samples of these steps."""
        return cls(level, [steps[first] for first, _ in blocks(len(steps), SPANS[level])], num_sites)


def read_planes(place: Place, cut: Cut, signal: int, span: range) -> list[array[int]]:
    """Read a signal at some sites: its codes, or those of its minimum, mean and maximum, site by site.

    Args:
        place: a sealed file of a level.
        cut: how it is cut.
        signal: which signal, as a number in the site table.
        span: which sites, likewise.

    Raises:
        UnreadableError: if it is not what was written.
        FileNotFoundError: if it is no longer kept.
    """

    def take(form: ModuleType, content: bytes) -> list[array[int]]:
        planes = [array("h") for _ in range(cut.width)]
        for _, part in form.unpack_planes(content, cut, signal, span):
            for plane, codes in zip(planes, part, strict=True):
                plane.extend(codes)
        if any(len(plane) != cut.rows * len(span) for plane in planes):
            raise UnreadableError(f"it holds {len(planes[0]):,} codes, not {cut.rows * len(span):,}")
        return planes

    planes: list[array[int]] = _read(place, take)
    return planes


def _read(place: Place, take: Any) -> Any:
    content = verified(place)
    form = form_of(place.path.suffix[1:])
    try:
        return take(form, content)
    except UnreadableError:
        raise
    except MissingExtraError:
        raise
    except _BROKEN as error:
        raise UnreadableError(f"it has its checksum, and is not of this format ({error})") from error


def damaged(place: Place, reason: str) -> Damage:
    """Say that a file is lost."""
    size = place.path.stat().st_size if place.path.exists() else 0
    return Damage("file", 0, size, f"{place.path.name} cannot be read: {reason}", place.number, file=place.path.name)


def of_tail(place: Place, damage: Damage) -> Damage:
    """Say of a tail's damage which tail it is in."""
    name = place.path.name
    return replace(damage, message=f"{name}: {damage.message}", segment=place.number, file=name)


def orphaned(number: int) -> Damage:
    """Say that a segment's steps are lost."""
    told = f"segment {number} has neither its file of samples nor its tail"
    return Damage("missing", 0, 0, told, number, file=f"samples-{number:06d}")


def lacking(number: int, table: int) -> Damage:
    """Say that a segment's codes cannot be told apart."""
    told = f"segment {number} needs site table {table}"
    return Damage("file", 0, 0, told, number, file=f"sites-{table:03d}.json")
