"""Sealed files without Parquet: frames with checksums, whose payloads are compressed by zlib.

file    = MAGIC frame*, as a tail; every payload is "Z" and zlib of what follows
samples = JSON: {"schema", "sites", "steps", "times", "scalars", "marks"}
level   = one frame for each signal and group of sites (`segments.groups`), in this order: for the codes ("full"), or
          for minimum, mean and maximum, the low bytes of all int16, then the high bytes, site by site
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from levada._numbers import json_ready, restore_numbers
from levada.runs.codes import codes_from, to_bytes
from levada.runs.frames import Damage
from levada.runs.pyramid import SPANS, blocks, groups, sites_in_group
from levada.runs.segments import Cut
from levada.runs.tail import SCHEMA, TAIL_MAGIC, Samples, UnreadableError, pack, require_schema, scan_frames

__all__ = ["pack_planes", "pack_samples", "unpack_planes", "unpack_samples", "unpack_steps"]

_MAX_TEXT: Final = 2**26
_PLACE: Final = struct.Struct("<I")


def _deflate(place: int, data: bytes) -> bytes:
    return pack(b"Z" + _PLACE.pack(place) + zlib.compress(data, 6))


def _inflate(part: memoryview, limit: int) -> bytes:
    """Decompress at most `limit` bytes; a claim of more is refused before it is made."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(part[1 + _PLACE.size :], limit)
    except zlib.error as error:
        raise UnreadableError(str(error)) from error
    if not stream.eof and (len(data) < limit or stream.decompress(stream.unconsumed_tail, 1)):
        raise UnreadableError(f"a frame holds more than {limit:,} bytes, or not its end")
    return data


def _parts(content: bytes, salvage: bool = False) -> Iterator[tuple[int, memoryview]]:
    """Give the frames with their places; with `salvage` those behind a damage, too."""
    for part in scan_frames(content):
        if isinstance(part, Damage):
            if not salvage:
                raise UnreadableError(part.message)
        elif bytes(part[:1]) == b"H":
            require_schema(json.loads(bytes(part[1:]))["schema"])
        elif bytes(part[:1]) == b"Z" and len(part) > _PLACE.size:
            yield _PLACE.unpack_from(part, 1)[0], part


def pack_samples(samples: Samples) -> bytes:
    """Give the bytes of a samples file."""
    values = {
        "schema": SCHEMA,
        "sites": samples.table,
        "steps": list(samples.steps),
        "times": list(samples.times),
        "scalars": samples.scalars,
        "marks": samples.marks,
    }
    return TAIL_MAGIC + _deflate(0, json.dumps(json_ready(values), separators=(",", ":")).encode())


def unpack_samples(content: bytes) -> Samples:
    """Read a samples file."""
    values = restore_numbers(json.loads(_inflate(next(_parts(content))[1], _MAX_TEXT)))
    require_schema(values["schema"])
    times = array("d", map(float, values["times"]))
    scalars = [{str(key): float(value) for key, value in each.items()} for each in values["scalars"]]
    if not len(values["steps"]) == len(times) == len(scalars):
        raise UnreadableError("its steps, times and scalars are not of one length")
    return Samples(int(values["sites"]), array("q", values["steps"]), times, scalars, list(map(int, values["marks"])))


def pack_planes(
    level: str,
    samples: Samples,
    planes: Sequence[array[int]],
    signals: Sequence[str],
    sites: Sequence[Mapping[str, Any]],
) -> bytes:
    """Give the bytes of the file of a level."""
    bounds = blocks(len(samples.steps), SPANS[level])
    rows = len(bounds)
    about = {
        "schema": SCHEMA,
        "sites": samples.table,
        "level": level,
        "steps": [samples.steps[first] for first, _ in bounds],
        "last_steps": [samples.steps[stop - 1] for _, stop in bounds],
        "num_samples": [stop - first for first, stop in bounds],
    }
    out = [TAIL_MAGIC, pack(b"H" + json.dumps(about, separators=(",", ":")).encode())]
    for signal in range(len(signals)):
        for group in groups(len(sites), rows):
            start = (signal * len(sites) + group.start) * rows
            part = b"".join(to_bytes(plane[start : start + len(group) * rows]) for plane in planes)
            out.append(_deflate(len(out) - 2, part[0::2] + part[1::2]))
    return b"".join(out)


def unpack_planes(
    content: bytes, cut: Cut, signal: int, span: range, salvage: bool = False
) -> Iterator[tuple[range, list[array[int]]]]:
    """Read a signal at some sites, group by group with its sites; with `salvage`, the groups that can be read."""
    per_signal = -(-cut.num_sites // sites_in_group(cut.rows))
    for place, part in _parts(content, salvage):
        start = (place % per_signal) * sites_in_group(cut.rows)
        group = range(start, min(start + sites_in_group(cut.rows), cut.num_sites))
        wanted = range(max(group.start, span.start), min(group.stop, span.stop))
        if place // per_signal != signal or not wanted:
            continue
        each = len(group) * cut.rows
        size = 2 * each * cut.width
        data = _inflate(part, size)
        if len(data) != size:
            raise UnreadableError(f"a frame holds {len(data):,} bytes, not {size:,}")
        both = bytearray(size)
        both[0::2], both[1::2] = data[: size // 2], data[size // 2 :]
        codes = codes_from(bytes(both))
        first, stop = (wanted.start - group.start) * cut.rows, (wanted.stop - group.start) * cut.rows
        yield wanted, [codes[plane * each + first : plane * each + stop] for plane in range(cut.width)]


def unpack_steps(content: bytes) -> tuple[int, list[int]]:
    """Give the number of the site table and the first step of each row of a level's file."""
    values = json.loads(bytes(next(iter(part for part in scan_frames(content) if isinstance(part, memoryview))))[1:])
    require_schema(values["schema"])
    return int(values["sites"]), list(map(int, values["steps"]))
