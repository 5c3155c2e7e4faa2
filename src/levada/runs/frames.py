"""The event log's format: a magic number, then frames of length, checksum and payload.

    file  = MAGIC frame*
    frame = <uint32 length> <uint32 crc32(payload)> <payload: `length` bytes>     little-endian

A payload is one UTF-8 JSON object whose first key is "type". JSON has no NaN and no infinity: they are written as the
strings "nan", "inf" and "-inf", and stay strings when read, because a model may well be called "inf". Whoever knows
that a field holds numbers says so (`Run.events(numbers=...)`), and there, at any depth, they become floats again.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NoReturn

from levada._errors import UsageError
from levada._numbers import json_ready

__all__ = [
    "MAGIC",
    "MAX_FRAME",
    "Damage",
    "Frame",
    "encode",
    "frame",
    "scan",
    "survivors",
]

MAGIC: Final = b"LEVADA\x01\n"
HEADER: Final = struct.Struct("<II")
# A report on 10,000 layers is about 5 MB; a reader must not allocate what a flipped bit asks for.
MAX_FRAME: Final = 64 * 2**20
_OPENING: Final = b'{"type":'


@dataclass(frozen=True, slots=True)
class Damage:
    """Where the readable part of a log ends, and why.

    Attributes:
        kind: "missing" (no log), "magic" (not a log), "incomplete" (the file ends inside a frame: a crash, or a writer
            at work at this moment), "length", "checksum" or "payload" (bytes were changed).
        offset: the byte at which the first unreadable frame begins.
        num_bytes: how many bytes lie from there to the end.
        message: one sentence.
        segment: of signals: number of the tail or segment that it is in; 0 otherwise.
        sample: in a tail: how many of its samples can be read before it.
        file: of signals: its name.
        series: which are lost, where not all of them.
    """

    kind: str
    offset: int
    num_bytes: int
    message: str
    segment: int = 0
    sample: int | None = None
    file: str = ""
    series: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """One good frame: its event, and the offsets of its first byte and of the byte after it."""

    event: dict[str, Any]
    start: int
    stop: int


def encode(type: str, payload: Mapping[str, Any]) -> bytes:
    """Encode one event as the bytes of a payload, "type" first.

    Raises:
        UsageError: if `type` is empty, the payload is not JSON, or it is larger than `MAX_FRAME`.

    Example:
        >>> encode("loss", {"value": 0.5})
        b'{"type":"loss","value":0.5}'
    """
    if not type or "type" in payload:
        raise UsageError(f"append: an event has one non-empty type, got {type!r} and the keys {sorted(payload)}.")
    # A lone surrogate (a file name that is not UTF-8) has no UTF-8; its backslash escape is JSON for the same.
    data = json.dumps(
        {"type": type, **json_ready(payload, type)}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode("utf-8", errors="backslashreplace")
    if len(data) > MAX_FRAME:
        raise UsageError(
            f"append: an event is at most {MAX_FRAME:,} bytes, got {len(data):,} of type {type!r}. "
            "Write it in several events."
        )
    return data


def frame(payload: bytes) -> bytes:
    """Put length and checksum before a payload."""
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _decode(payload: bytes) -> dict[str, Any] | str:
    """Give the event, or the reason why the payload is none."""
    try:
        event = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return f"its payload is not JSON ({error})"
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return "its payload is not an object with a type"
    return event


def scan(file: BinaryIO, start: int = len(MAGIC)) -> Iterator[Frame | Damage]:
    """Read frames from `start` on; at the first that is not good, give one `Damage` and stop.

    Args:
        file: opened for binary reading, seekable.
        start: offset of a frame.

    Example:
        >>> import io
        >>> log = io.BytesIO(MAGIC + frame(encode("loss", {"value": 0.5})) + b"torn")
        >>> [type(found).__name__ for found in scan(log)]
        ['Frame', 'Damage']
    """
    size = file.seek(0, os.SEEK_END)

    def damage(kind: str, reason: str) -> Damage:
        return Damage(kind, start, max(0, size - start), f"the frame at byte {start:,} cannot be read: {reason}")

    file.seek(0)
    if (magic := file.read(len(MAGIC))) != MAGIC:
        start = 0
        if MAGIC.startswith(magic):
            yield damage("incomplete", "the file ends inside its first 8 bytes")
        else:
            yield damage("magic", "the file does not begin as an event log does")
        return
    file.seek(start)
    while header := file.read(HEADER.size):
        # A short read is not an end that moved: a writer may have appended since `size` was taken.
        if len(header) < HEADER.size:
            yield damage("incomplete", "the file ends inside its header")
            return
        length, checksum = HEADER.unpack(header)
        if not len(_OPENING) < length <= MAX_FRAME:
            yield damage("length", f"it claims {length:,} bytes")
            return
        payload = file.read(length)
        if len(payload) < length:
            yield damage("incomplete", f"the file ends after {len(payload):,} of its {length:,} bytes")
            return
        if zlib.crc32(payload) != checksum:
            yield damage("checksum", "its checksum differs")
            return
        event = _decode(payload)
        if isinstance(event, str):
            yield damage("payload", event)
            return
        stop = start + HEADER.size + length
        yield Frame(event, start, stop)
        start = stop


def survivors(data: bytes) -> list[Frame]:
    """Find the good frames anywhere in `data`, with their offsets: what is left behind a damage.

    Example:
        >>> good = frame(encode("loss", {}))
        >>> [(found.start, found.event) for found in survivors(b"bad bytes" + good + b"torn")]
        [(9, {'type': 'loss'})]
    """
    found, at = list[Frame](), data.find(_OPENING)
    while at >= 0:
        after = at + 1
        if at >= HEADER.size:
            length, checksum = HEADER.unpack_from(data, at - HEADER.size)
            payload = data[at : at + length] if length <= MAX_FRAME else b""
            if len(payload) == length and zlib.crc32(payload) == checksum:
                event = _decode(payload)
                if isinstance(event, dict):
                    after = at + length
                    found.append(Frame(event, at - HEADER.size, after))
        at = data.find(_OPENING, after)
    return found
