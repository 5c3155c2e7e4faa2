"""Files whose checksums are right and whose contents are not ours: refused, told, and not expanded in memory."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faults import small

from levada.runs import Run, RunWriter, SignalWriter, doctor
from levada.runs.codes import encode
from levada.runs.segments import Cut, Place, UnreadableError, places, read_planes, read_samples, sealed_name
from levada.runs.tail import MAX_SCALARS, TAIL_MAGIC, pack


@pytest.fixture
def run(tmp_path: Path) -> Path:
    small.write(tmp_path / "run", "parquet")
    return tmp_path / "run"


def replaced(run: Path, level: str, content: bytes, suffix: str) -> Place:
    """Put a file with a right checksum in place of that of a level."""
    folder = run / "signals" / "rank-00000"
    next(folder.glob(f"{level}-000001-*")).unlink()
    (folder / sealed_name(level, 1, content, suffix)).write_bytes(content)
    return next(place for place in places(folder) if (place.level, place.number) == (level, 1))


def parquet(table: Any, about: dict[str, Any]) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({"levada": json.dumps({"schema": 1, "sites": 0, **about})})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def scalars_of(counts: list[int]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
    keys, values = pa.array(["k"] * ends[-1]), pa.array([0.0] * ends[-1], pa.float64())
    scalars = pa.MapArray.from_arrays(pa.array(ends, pa.int32()), keys, values)
    zeros = [0] * len(counts)
    table = pa.table({"step": pa.array(zeros, pa.int64()), "time": pa.array(zeros, pa.float64()), "scalars": scalars})
    return parquet(table, {"marks": []})


def test_a_small_file_of_many_scalars_is_refused_before_it_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    content = scalars_of([2**20 + 2])
    assert len(content) < 10_000
    place = replaced(run, "samples", content, "parquet")

    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("it is read")

    for method in ("read", "iter_batches"):
        monkeypatch.setattr(pq.ParquetFile, method, read)
    with pytest.raises(UnreadableError, match="row group 0 claims 1,048,578 values of 'scalars'"):
        read_samples(place)
    assert not doctor(run).healthy


def test_scalars_of_several_row_groups_are_counted_together(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("levada.runs.parquet._MAX_SCALARS", 30)
    with pytest.raises(UnreadableError, match="more than 30 scalars"):
        read_samples(replaced(run, "samples", scalars_of([0] * 290 + [3] * 11), "parquet"))
    assert len(read_samples(replaced(run, "samples", scalars_of([0] * 290 + [3] * 10), "parquet")).steps) == 300


def test_columns_that_are_no_codes_or_claim_too_many_bytes_are_refused(run: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    cut = Cut.of("full", range(20), 3)
    for column, reason in (
        (pa.array([f"{i}" * 10**5 for i in range(60)]), "claims 60 values of 'code'"),
        (pa.array(range(60), pa.int32()), "holds no codes"),
    ):
        content = parquet(pa.table({"code": column}), {"level": "full"})
        with pytest.raises(UnreadableError, match=reason):
            read_planes(replaced(run, "full", content, "parquet"), cut, 0, range(3))


def test_a_sample_has_no_more_scalars_than_a_reader_takes(tmp_path: Path) -> None:
    RunWriter.create(tmp_path, kind="watch", name="x").close()
    with SignalWriter(tmp_path, sites=[{"name": "a"}], signals=["x"]) as writer:
        writer.append(0, 0.0, encode([1.0]), {f"s{i}": 1.0 for i in range(MAX_SCALARS + 1)})
        writer.append(1, 0.0, encode([1.0]), {f"s{i}": 1.0 for i in range(MAX_SCALARS)})
    assert writer.dropped == 1
    assert len(Run(tmp_path).signals().scalar_names) == MAX_SCALARS


def test_a_nest_too_deep_for_the_parser_is_damage(run: Path) -> None:
    content = TAIL_MAGIC + pack(b"Z" + struct.pack("<I", 0) + zlib.compress(b"[" * 200_000))
    replaced(run, "samples", content, "frames")
    assert "not of this format" in Run(run).signals().damage[0].message
    assert not doctor(run).healthy


@pytest.mark.parametrize(
    "table",
    [
        {"schema": 1, "signals": ["a"], "sites": [{"order": 0}]},
        {"schema": 1, "signals": ["a"], "sites": [1]},
        {"schema": 1, "signals": ["a"], "sites": [{"name": "x"}, {"name": "x"}]},
        {"schema": 1, "signals": [["a"]], "sites": []},
        {"schema": 1, "signals": 3, "sites": []},
        {"schema": 1, "sites": []},
        {"schema": 1, "signals": []},
    ],
)
def test_a_table_that_is_none_is_damage_and_not_an_error(run: Path, table: dict[str, Any]) -> None:
    canonical = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    for name in ("sites-000.json", "sites-000.copy"):
        content = b'{"crc32":%d,"table":%s}\n' % (zlib.crc32(canonical), canonical)
        (run / "signals" / "rank-00000" / name).write_bytes(content)
    signals = Run(run).signals()
    assert "sites-000" in signals.damage[0].message
    assert signals.names == ()
    assert not doctor(run).healthy


def test_events_of_losses_that_hold_none_are_left_out(run: Path) -> None:
    before = Run(run).losses()
    with RunWriter.open(run) as writer:
        writer.append("loss", steps=[100, 101])
        writer.append("loss", steps=[100, 101], values=[1.0])
        writer.append("loss", steps=["a"], values=[1.0])
        writer.append("loss", steps=[100], values=[{}])
        writer.append("loss", steps=[102], values=[float("nan")])
    losses = Run(run).losses()
    assert losses[:-1] == before
    assert losses[-1][0] == 102
    assert Run(run).signals().losses()[0] == before[0]
