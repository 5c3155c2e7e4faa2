"""Sealed files of signals: immutable, each with the checksum of all its bytes in its name.

A tail NNNNNN is sealed into four files, each written under another name, forced to the disk and then renamed:

    by256-NNNNNN-CRC32, by16-NNNNNN-CRC32   minimum, mean and maximum of blocks of 256 and 16 samples
    full-NNNNNN-CRC32                       every sample
    samples-NNNNNN-CRC32                    steps, times, scalars and marks; written last: with it the tail is sealed

They are Parquet (`.parquet`) where pyarrow is installed, and compressed frames (`.frames`) where it is not.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from levada.runs.frames import Damage
from levada.runs.manifest import write_atomically
from levada.runs.pyramid import SPANS, coarsen, coarsen_by_arrow
from levada.runs.tail import Samples

__all__ = [
    "LEVELS",
    "MAX_FILE",
    "Place",
    "UnreadableError",
    "damaged",
    "groups",
    "has_parquet",
    "places",
    "read_planes",
    "read_samples",
    "seal",
    "sealed_name",
    "sites_in_group",
    "tail_name",
    "verified",
]

LEVELS: Final = ("by256", "by16", "full", "samples")
MAX_FILE: Final = 2**30
_SEALED: Final = re.compile(r"(full|by16|by256|samples)-(\d{6,12})-([0-9a-f]{8})\.(parquet|frames)")
_TAIL: Final = re.compile(r"tail-(\d{6,12})\.log")


class UnreadableError(Exception):
    """A sealed file that is not what was written; the message is the reason."""


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


def _format(suffix: str) -> ModuleType:
    """Give the module that writes and reads a kind of file."""
    from levada.runs import packed, parquet

    return {"parquet": parquet, "frames": packed}[suffix]


def verified(place: Place) -> bytes:
    """Give the bytes of a sealed file.

    Raises:
        UnreadableError: if they are not those that were written.
        FileNotFoundError: if the file is no longer kept.
    """
    with place.path.open("rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise UnreadableError(f"it is longer than {MAX_FILE:,} bytes")
    if zlib.crc32(content) != place.checksum:
        raise UnreadableError("its bytes are not those whose checksum is in its name")
    return content


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
    form, rows = _format(suffix), len(samples.steps)
    # Marks without samples are kept, and have no levels.
    levels = LEVELS if rows else ("samples",)
    series = samples.series(len(signals) * len(sites))
    reduce = coarsen_by_arrow if suffix == "parquet" else coarsen
    written = []
    for level in levels:
        if level == "samples":
            data = form.pack_samples(samples)
        else:
            planes = (series,) if level == "full" else reduce(series, rows, SPANS[level])
            data = form.pack_planes(level, samples, planes, signals, sites)
        path = folder / sealed_name(level, number, data, suffix)
        write_atomically(path, data)
        written.append(path)
    return written


def read_samples(place: Place) -> Samples:
    """Read what a sealed tail held, but for its codes.

    Raises:
        UnreadableError: if it is not what was written.
    """
    samples: Samples = _read(place, lambda form, content: form.unpack_samples(content))
    return samples


def read_planes(place: Place, rows: int, span: range, signal: int, num_sites: int) -> list[array[int]]:
    """Read a signal at some sites: its codes, or those of its minimum, mean and maximum, site by site.

    Args:
        place: a sealed file of a level.
        rows: number of rows of a site.
        span: which sites, as numbers in the site table.
        signal: which signal, likewise.
        num_sites: number of sites in the table.

    Raises:
        UnreadableError: if it is not what was written.
    """

    def take(form: ModuleType, content: bytes) -> list[array[int]]:
        width = 1 if place.level == "full" else 3
        planes = [array("h") for _ in range(width)]
        for part in form.unpack_planes(content, place.level, rows, span, signal, num_sites):
            if len(part) != width:
                raise UnreadableError(f"it holds {len(part)} numbers a row, not {width}")
            for plane, codes in zip(planes, part, strict=True):
                plane.extend(codes)
        if any(len(plane) != rows * len(span) for plane in planes):
            raise UnreadableError(
                f"it holds {len(planes[0]):,} codes, not those of {len(span):,} sites and {rows:,} rows"
            )
        return planes

    planes: list[array[int]] = _read(place, take)
    return planes


def _read(place: Place, take: Any) -> Any:
    content = verified(place)
    form = _format(place.path.suffix[1:])
    try:
        return take(form, content)
    except UnreadableError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, OverflowError, MemoryError) as error:
        from levada._errors import MissingExtraError

        if isinstance(error, MissingExtraError):
            raise
        raise UnreadableError(f"it has its checksum, and is not of this format ({error})") from error


def damaged(place: Place, reason: str) -> Damage:
    """Say that a file is lost."""
    size = place.path.stat().st_size if place.path.exists() else 0
    return Damage("file", 0, size, f"{place.path.name} cannot be read: {reason}")


def sites_in_group(rows: int) -> int:
    """Give how many sites of one signal stand together: about a million codes.

    Example:
        >>> sites_in_group(256)
        4096
    """
    return max(1, 2**20 // max(rows, 1))


def groups(num_sites: int, rows: int) -> Iterator[range]:
    """Give the sites that stand together, in order.

    Example:
        >>> list(groups(5000, 256))
        [range(0, 4096), range(4096, 5000)]
    """
    size = sites_in_group(rows)
    for start in range(0, num_sites, size):
        yield range(start, min(start + size, num_sites))
