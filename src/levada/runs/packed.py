"""Sealed files without Parquet: frames with checksums, whose payloads are compressed by zlib.

file    = MAGIC frame*, as a tail; every payload is "Z" and zlib of what follows
samples = JSON: {"schema", "sites", "steps", "times", "scalars", "marks"}
level   = one frame for each signal and group of sites (`segments.groups`), in this order: for the codes ("full"), or
          for minimum, mean and maximum, the low bytes of all int16, then the high bytes, site by site
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from levada._numbers import json_ready, restore_numbers
from levada.runs.codes import codes_from, to_bytes
from levada.runs.frames import Damage
from levada.runs.segments import UnreadableError, groups, sites_in_group
from levada.runs.tail import SCHEMA, TAIL_MAGIC, Samples, pack, scan_frames

__all__ = ["pack_planes", "pack_samples", "unpack_planes", "unpack_samples"]

_MAX_TEXT = 2**26


def _deflate(data: bytes) -> bytes:
    return pack(b"Z" + zlib.compress(data, 6))


def _inflate(part: memoryview, limit: int) -> bytes:
    """Decompress at most `limit` bytes; a claim of more is refused before it is made."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(part[1:], limit)
    except zlib.error as error:
        raise UnreadableError(str(error)) from error
    if bytes(part[:1]) != b"Z" or not stream.eof:
        raise UnreadableError(f"a frame is not compressed, or holds more than {limit:,} bytes")
    return data


def _parts(content: bytes) -> Iterator[memoryview]:
    for part in scan_frames(content):
        if isinstance(part, Damage):
            raise UnreadableError(part.message)
        yield part


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
    return TAIL_MAGIC + _deflate(json.dumps(json_ready(values), separators=(",", ":")).encode())


def unpack_samples(content: bytes) -> Samples:
    """Read a samples file."""
    values = restore_numbers(json.loads(_inflate(next(_parts(content)), _MAX_TEXT)))
    require_schema(values["schema"])
    times = array("d", map(float, values["times"]))
    scalars = [{str(key): float(value) for key, value in each.items()} for each in values["scalars"]]
    if not len(values["steps"]) == len(times) == len(scalars):
        raise UnreadableError("its steps, times and scalars are not of one length")
    return Samples(int(values["sites"]), array("q", values["steps"]), times, scalars, list(map(int, values["marks"])))


def require_schema(schema: int) -> None:
    """Raise unless this levada reads the schema."""
    if schema > SCHEMA:
        raise UnreadableError(f"it is of schema {schema}, and this levada reads {SCHEMA}; update levada")


def pack_planes(
    level: str,
    samples: Samples,
    planes: Sequence[array[int]],
    signals: Sequence[str],
    sites: Sequence[Mapping[str, Any]],
) -> bytes:
    """Give the bytes of the file of a level."""
    if not signals or not sites:
        return TAIL_MAGIC
    rows = len(planes[0]) // (len(signals) * len(sites))
    out = [TAIL_MAGIC]
    for signal in range(len(signals)):
        for group in groups(len(sites), rows):
            start = (signal * len(sites) + group.start) * rows
            part = b"".join(to_bytes(plane[start : start + len(group) * rows]) for plane in planes)
            out.append(_deflate(part[0::2] + part[1::2]))
    return b"".join(out)


def unpack_planes(
    content: bytes, level: str, rows: int, span: range, signal: int, num_sites: int
) -> Iterator[list[array[int]]]:
    """Read a signal at some sites, group by group."""
    width, size = 1 if level == "full" else 3, sites_in_group(rows)
    per_signal = -(-num_sites // size)
    for number, part in enumerate(_parts(content)):
        group = range((number % per_signal) * size, min((number % per_signal + 1) * size, num_sites))
        wanted = range(max(group.start, span.start), min(group.stop, span.stop))
        if number // per_signal != signal or not wanted:
            continue
        num_codes = len(group) * rows * width
        data = _inflate(part, 2 * num_codes)
        if len(data) != 2 * num_codes:
            raise UnreadableError(f"a frame holds {len(data):,} bytes, not {2 * num_codes:,}")
        both = bytearray(len(data))
        both[0::2], both[1::2] = data[:num_codes], data[num_codes:]
        codes = codes_from(bytes(both))
        each = len(group) * rows
        first, stop = (wanted.start - group.start) * rows, (wanted.stop - group.start) * rows
        yield [codes[plane * each + first : plane * each + stop] for plane in range(width)]
