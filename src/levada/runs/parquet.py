"""Sealed files as Parquet: one row for each signal, site and sample, one row group for a signal and a group of sites.

Codes of one site stand in the order of time, where they differ by little: they are kept as differences of 128 values at
a time (DELTA_BINARY_PACKED), then compressed by zstd. Pages have checksums.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from levada._errors import import_extra
from levada.runs.pyramid import SEGMENT, SPANS, blocks, groups
from levada.runs.segments import Cut
from levada.runs.tail import MAX_SCALARS, SCHEMA, Samples, UnreadableError, require_schema

__all__ = ["pack_planes", "pack_samples", "unpack_planes", "unpack_samples", "unpack_steps"]

_PLANES: Final = {"full": ("code",), "by16": ("low", "mean", "high"), "by256": ("low", "mean", "high")}
_KEY: Final = b"levada"
_MAX_SAMPLES: Final = 2**20
_MAX_SCALARS: Final = SEGMENT * MAX_SCALARS
_MAX_TEXT: Final = 2**26
# A row group holds a million rows, or those of one site.
_MAX_ROWS: Final = 2**21


def _arrow() -> tuple[ModuleType, ModuleType]:
    names = ("pyarrow", "pyarrow.parquet")
    pa, pq = (import_extra(name, "store", "a run whose signals are sealed as Parquet") for name in names)
    return pa, pq


def _meta(values: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {_KEY: json.dumps({"schema": SCHEMA, **values}).encode()}


def _writer(schema: Any, *, packed: Sequence[str], names: Sequence[str]) -> tuple[Any, Any]:
    pa, pq = _arrow()
    sink = pa.BufferOutputStream()
    writer = pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=list(names),
        column_encoding=dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
        write_page_checksum=True,
    )
    return writer, sink


def pack_samples(samples: Samples) -> bytes:
    """Give the bytes of a samples file: step, time and a map of scalars, a row a sample."""
    pa, _ = _arrow()
    fields = [("step", pa.int64()), ("time", pa.float64()), ("scalars", pa.map_(pa.string(), pa.float64()))]
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])
    schema = schema.with_metadata(_meta({"sites": samples.table, "marks": samples.marks}))
    columns = [
        pa.array(samples.steps, pa.int64()),
        pa.array(samples.times, pa.float64()),
        pa.array([list(each.items()) for each in samples.scalars], schema.field("scalars").type),
    ]
    writer, sink = _writer(schema, packed=["step"], names=["scalars.key_value.key"])
    with writer:
        writer.write_table(pa.table(columns, schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _open(content: bytes) -> tuple[Any, dict[str, Any]]:
    pa, pq = _arrow()
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    values = json.loads((file.schema_arrow.metadata or {})[_KEY])
    require_schema(values["schema"])
    return file, values


def unpack_samples(content: bytes) -> Samples:
    """Read a samples file."""
    file, values = _open(content)
    if file.metadata.num_rows > _MAX_SAMPLES:
        raise UnreadableError(f"it claims {file.metadata.num_rows:,} samples")
    for group in range(file.metadata.num_row_groups):
        _require_small(file, group, _MAX_SCALARS + file.metadata.num_rows, _MAX_TEXT)
    steps, times, scalars, count = array("q"), array("d"), list[dict[str, float]](), 0
    for batch in file.iter_batches(SEGMENT, columns=["step", "time", "scalars"], use_threads=False):
        ends = batch.column("scalars").offsets
        count += ends[-1].as_py() - ends[0].as_py()
        if count > _MAX_SCALARS:
            raise UnreadableError(f"it holds more than {_MAX_SCALARS:,} scalars")
        scalars += map(dict, batch.column("scalars").to_pylist())
        steps.extend(batch.column("step").to_pylist())
        times.extend(batch.column("time").to_pylist())
    return Samples(int(values["sites"]), steps, times, scalars, list(map(int, values["marks"])))


def _require_small(file: Any, group: int, values: int, size: int, names: Sequence[str] = ()) -> None:
    """Raise if columns of a row group claim more values, or bytes once decompressed; before any of them is read."""
    about = file.metadata.row_group(group)
    for column in map(about.column, range(about.num_columns)):
        name = column.path_in_schema.partition(".")[0]
        if (not names or name in names) and (column.num_values > values or column.total_uncompressed_size > size):
            found = f"{column.num_values:,} values of {name!r} in {column.total_uncompressed_size:,} bytes"
            raise UnreadableError(f"row group {group} claims {found}")


def pack_planes(
    level: str,
    samples: Samples,
    planes: Sequence[array[int]],
    signals: Sequence[str],
    sites: Sequence[Mapping[str, Any]],
) -> bytes:
    """Give the bytes of the file of a level."""
    pa, _ = _arrow()
    bounds = blocks(len(samples.steps), SPANS[level])
    rows = len(bounds)
    steps = {"step": (pa.int64(), "q", [samples.steps[first] for first, _ in bounds])}
    if level != "full":
        steps["last_step"] = (pa.int64(), "q", [samples.steps[stop - 1] for _, stop in bounds])
        steps["num_samples"] = (pa.int32(), "i", [stop - first for first, stop in bounds])
    names = pa.dictionary(pa.int32(), pa.string())
    kinds = {"signal": names, "site": names, "order": pa.int32()}
    kinds |= {name: kind for name, (kind, _, _) in steps.items()} | {name: pa.int16() for name in _PLANES[level]}
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
    schema = schema.with_metadata(_meta({"level": level, "sites": samples.table}))
    packed = [name for name in kinds if name not in ("signal", "site")]
    writer, sink = _writer(schema, packed=packed, names=["signal", "site"])
    with writer:
        for group in groups(len(sites), rows) if rows else ():
            size = len(group) * rows
            site = array("i")
            for i in range(len(group)):
                site.extend(array("i", [i]) * rows)
            order = array("i")
            for i in group:
                order.extend(array("i", [sites[i].get("order", i)]) * rows)
            labels = pa.array([sites[i]["name"] for i in group], pa.string())
            common = {"site": pa.DictionaryArray.from_arrays(_column(site, pa.int32()), labels)}
            common["order"] = _column(order, pa.int32())
            common |= {name: _column(array(code, per) * len(group), kind) for name, (kind, code, per) in steps.items()}
            for signal, label in enumerate(signals):
                start = (signal * len(sites) + group.start) * rows
                of = pa.DictionaryArray.from_arrays(
                    _column(array("i", [0]) * size, pa.int32()), pa.array([label], pa.string())
                )
                parts = [_column(plane[start : start + size], pa.int16()) for plane in planes]
                columns = {"signal": of, **common} | dict(zip(_PLANES[level], parts, strict=True))
                writer.write_table(pa.table(columns, schema=schema), row_group_size=size)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _column(values: array[int], kind: Any) -> Any:
    pa, _ = _arrow()
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def unpack_planes(
    content: bytes, cut: Cut, signal: int, span: range, salvage: bool = False
) -> Iterator[tuple[range, list[array[int]]]]:
    """Read a signal at some sites, group by group with its sites; with `salvage`, the groups that can be read."""
    file, _ = _open(content)
    num_signals = file.metadata.num_rows // max(cut.rows * cut.num_sites, 1)
    for number, group in enumerate(groups(cut.num_sites, cut.rows)):
        wanted = range(max(group.start, span.start), min(group.stop, span.stop))
        if not wanted:
            continue
        try:
            planes = _group(file, number * num_signals + signal, cut, group, salvage)
        except (OSError, ValueError, KeyError, UnreadableError):
            if salvage:
                continue
            raise
        first, stop = (wanted.start - group.start) * cut.rows, (wanted.stop - group.start) * cut.rows
        yield wanted, [plane[first:stop] for plane in planes]


def _group(file: Any, place: int, cut: Cut, group: range, strictly: bool) -> list[array[int]]:
    """Read a row group; `strictly` also looks whether its steps are those that they should be."""
    rows = file.metadata.row_group(place).num_rows
    if rows != len(group) * cut.rows:
        raise UnreadableError(f"row group {place} holds {rows:,} rows")
    names = list(_PLANES[cut.level])
    read = [*names, *(["step"] if strictly else [])]
    _require_small(file, place, rows, _bytes_of(rows), read)
    if any(str(file.schema_arrow.field(name).type) != "int16" for name in names):
        raise UnreadableError(f"row group {place} holds no codes")
    table = file.read_row_group(place, columns=read, use_threads=False)
    if strictly and table["step"].to_pylist() != list(cut.steps) * len(group):
        raise UnreadableError(f"row group {place} holds other steps")
    return [_codes(table[name]) for name in names]


def _bytes_of(rows: int) -> int:
    """Give how many bytes a column of integers may take: the widest has eight, and packing adds little."""
    return 16 * rows + 2**16


def unpack_steps(content: bytes) -> tuple[int, list[int]]:
    """Give the number of the site table and the first step of each row of a level's file."""
    file, values = _open(content)
    if (rows := file.metadata.row_group(0).num_rows) > _MAX_ROWS:
        raise UnreadableError(f"its first row group claims {rows:,} rows")
    _require_small(file, 0, rows, _bytes_of(rows), ["step"])
    steps = file.read_row_group(0, columns=["step"], use_threads=False)["step"].to_pylist()
    return int(values["sites"]), steps[
        : next((i for i, step in enumerate(steps) if i and step == steps[0]), len(steps))
    ]


def _codes(column: Any) -> array[int]:
    out = array("h")
    for chunk in column.chunks:
        if chunk.null_count:
            raise UnreadableError("a code is missing")
        view = memoryview(chunk.buffers()[1])[2 * chunk.offset : 2 * (chunk.offset + len(chunk))]
        out.frombytes(view)
    return out
