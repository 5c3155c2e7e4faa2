"""The part of the signals that still grows: samples, appended one by one, each with a checksum.

    file  = MAGIC frame*
    frame = SYNC <uint32 length> <uint32 crc32(payload)> <payload: `length` bytes>     little-endian

SYNC lets a reader find the next frame behind a damage. The first byte of a payload says what it is:

    "H" JSON: {"schema": 1, "sites": number of the site table}; the first frame of every tail
    "S" <int64 step> <float64 time> <uint32 site table> <uint32 n> <n bytes of JSON: the scalars> <int16 codes>
    "M" <int64 step>: something happened here, keep the detail around it
    "Z" <uint32 place> <zlib>: a part of a sealed file, where Parquet is not installed (see `packed`)
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from levada._numbers import json_ready, restore_numbers
from levada.runs.codes import codes_from
from levada.runs.frames import MAX_FRAME, Damage

__all__ = [
    "MAX_SCALARS",
    "MAX_TAIL",
    "NEWER",
    "SCHEMA",
    "TAIL_MAGIC",
    "NewerError",
    "Samples",
    "UnreadableError",
    "header",
    "mark",
    "pack",
    "read_tail",
    "require_schema",
    "sample",
    "scan_frames",
]

SCHEMA: Final = 1
TAIL_MAGIC: Final = b"LEVSIG\x01\n"
SYNC: Final = b"\xf5Lv\n"
# A tail is sealed at 64 MiB, and its last frame may be as long again.
MAX_TAIL: Final = 4 * MAX_FRAME
# Of one sample. A reader refuses a file that claims more than its samples may have.
MAX_SCALARS: Final = 4096
NEWER: Final = "schema"
"""The kind of damage of a tail that a newer levada wrote: nothing is wrong with it, and nothing of it can be read."""
_HEADER: Final = struct.Struct("<4sII")
_SAMPLE: Final = struct.Struct("<qdII")
_STEP: Final = struct.Struct("<q")


class UnreadableError(Exception):
    """A file of signals that is not what was written; the message is the reason."""


class NewerError(UnreadableError):
    """A file of signals that a newer levada wrote, and that only such a one may change."""


def require_schema(schema: int) -> None:
    """Raise unless this levada reads the schema.

    Args:
        schema: of a tail or a sealed file.

    Raises:
        NewerError: if it is newer.
    """
    if schema > SCHEMA:
        raise NewerError(f"it is of schema {schema}, and this levada reads {SCHEMA}; update levada")


@dataclass(slots=True)
class Samples:
    """What one tail holds, sealed or not.

    Attributes:
        table: number of the site table.
        steps: step of each sample, in the order of writing.
        times: when each was taken, as it was given.
        scalars: the scalars of each.
        marks: steps around which the detail is kept.
        codes: codes of each, `(signals, sites)` flattened; empty where they lie in another file.
    """

    table: int = -1
    steps: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    scalars: list[dict[str, float]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    codes: list[bytes | memoryview] = field(default_factory=list)

    def series(self, width: int) -> array[int]:
        """Give the codes with each series in one piece: `(signals, sites, samples)` flattened.

        Args:
            width: number of signals times sites.
        """
        rows = codes_from(b"".join(self.codes))
        out = array("h")
        for column in range(width):
            out.extend(rows[column::width])
        return out


def pack(payload: bytes) -> bytes:
    """Put the mark, length and checksum of a frame before its payload."""
    return _HEADER.pack(SYNC, len(payload), zlib.crc32(payload)) + payload


def header(table: int) -> bytes:
    """Give the first frame of a tail."""
    return pack(b"H" + json.dumps({"schema": SCHEMA, "sites": table}).encode())


def sample(step: int, time: float, table: int, codes: bytes, scalars: Mapping[str, float]) -> bytes:
    """Give the frame of one sample."""
    text = json.dumps(json_ready(scalars), ensure_ascii=True, separators=(",", ":")).encode()
    return pack(b"S" + _SAMPLE.pack(step, time, table, len(text)) + text + codes)


def mark(step: int) -> bytes:
    """Give the frame that keeps the detail around a step."""
    return pack(b"M" + _STEP.pack(step))


def _good(data: memoryview, at: int) -> tuple[int, str, str]:
    """Give where the frame at `at` stops, or 0 with the kind of damage and the reason."""
    if len(data) - at < _HEADER.size:
        return 0, "incomplete", "the file ends inside its header"
    sync, length, checksum = _HEADER.unpack_from(data, at)
    if sync != SYNC:
        return 0, "magic", "it does not begin as a frame does"
    if not 0 < length <= MAX_FRAME:
        return 0, "length", f"it claims {length:,} bytes"
    start = at + _HEADER.size
    if len(data) - start < length:
        return 0, "incomplete", f"the file ends after {len(data) - start:,} of its {length:,} bytes"
    if zlib.crc32(data[start : start + length]) != checksum:
        return 0, "checksum", "its checksum differs"
    return start + length, "", ""


def _whole(content: bytes, at: int) -> bool:
    """Whether a frame that claims to go beyond the end is all there, up to a later mark or the end: no crash did that.

    Example:
        >>> frame = bytearray(mark(7))
        >>> frame[6] ^= 1
        >>> _whole(bytes(frame), 0), _whole(bytes(frame[:-1]), 0), _whole(bytes(frame) + mark(9)[:-1], 0)
        (True, False, True)
    """
    if len(content) - at < _HEADER.size:
        return False
    start, found = at + _HEADER.size, 0
    data, checksum = memoryview(content), _HEADER.unpack_from(content, at)[2]
    while start < len(content):
        stop = content.find(SYNC, start + 1)
        stop = stop if stop >= 0 else len(content)
        found = zlib.crc32(data[start:stop], found)
        if found == checksum:
            return True
        start = stop
    return False


def scan_frames(content: bytes) -> Iterator[memoryview | Damage]:
    """Give the payloads of the good frames, and for every stretch between them that cannot be read a `Damage`.

    Args:
        content: a whole tail or sealed file of frames.

    Example:
        >>> content = TAIL_MAGIC + mark(7) + b"torn" + mark(9) + mark(11)[:-1]
        >>> [type(part).__name__ for part in scan_frames(content)]
        ['memoryview', 'Damage', 'memoryview', 'Damage']
    """
    data, at = memoryview(content), len(TAIL_MAGIC)
    if not content.startswith(TAIL_MAGIC):
        first = content.find(SYNC)
        kind = "incomplete" if TAIL_MAGIC.startswith(content) else "magic"
        lost = len(content) if first < 0 else first
        yield Damage(kind, 0, lost, "the file does not begin as a record of signals does")
        at = lost
    while at < len(data):
        stop, kind, reason = _good(data, at)
        if stop:
            yield data[at + _HEADER.size : stop]
            at = stop
            continue
        start = at
        while not stop and at >= 0:
            at = content.find(SYNC, at + 1)
            stop = _good(data, at)[0] if at >= 0 else 0
        at = at if stop else len(data)
        if kind == "incomplete" and (stop or _whole(content, start)):
            kind, reason = "length", "its length was changed"
        yield Damage(kind, start, at - start, f"the frame at byte {start:,} cannot be read: {reason}")


def _numbers(text: bytes) -> dict[str, float]:
    values = restore_numbers(json.loads(text))
    return {str(key): float(value) for key, value in values.items()}


def read_tail(path: Path, widths: Mapping[int, int]) -> tuple[Samples, list[Damage]]:
    """Read the good samples of a tail, and what of it is lost.

    Args:
        path: the file.
        widths: number of codes of a sample, by the number of the site table.

    Returns:
        The samples, and the damages; of a tail that a newer levada wrote no sample, and one damage of the kind `NEWER`.

    Raises:
        FileNotFoundError: if it was sealed in the meantime.
    """
    with path.open("rb") as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, MAX_TAIL) + 1)
    longer, content = len(content) > MAX_TAIL, content[:MAX_TAIL]
    found, damages, at = Samples(), [], 0
    for part in scan_frames(content):
        if isinstance(part, Damage):
            damages.append(replace(part, sample=len(found.steps)))
            at = part.offset + part.num_bytes
            continue
        try:
            _take(found, part, widths)
        except NewerError as error:  # what a sample is may have changed, too
            return Samples(), [Damage(NEWER, 0, len(content), str(error), sample=0)]
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError, struct.error) as error:
            damages.append(Damage("payload", at, len(part), f"a frame is no sample: {error}", sample=len(found.steps)))
    if longer:
        damages.append(Damage("length", MAX_TAIL, path.stat().st_size - MAX_TAIL, "the file is longer than a tail is"))
    return found, damages


def _take(found: Samples, part: memoryview, widths: Mapping[int, int]) -> None:
    kind, body = bytes(part[:1]), part[1:]
    if kind == b"H":
        values: Any = json.loads(bytes(body))
        require_schema(values["schema"])
        found.table = int(values["sites"])
    elif kind == b"M":
        found.marks.append(_STEP.unpack(body)[0])
    elif kind == b"S":
        step, time, table, length = _SAMPLE.unpack_from(body)
        scalars = _numbers(bytes(body[_SAMPLE.size : _SAMPLE.size + length]))
        codes = body[_SAMPLE.size + length :]
        if found.table not in (-1, table) or len(codes) != 2 * widths.get(table, -1):
            raise ValueError(f"it holds {len(codes)} bytes of codes, not those of site table {table}")
        found.table = table
        found.steps.append(step)
        found.times.append(time)
        found.scalars.append(scalars)
        found.codes.append(codes)
    else:
        raise ValueError(f"its kind is {kind!r}")
