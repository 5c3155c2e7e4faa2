"""Tails that were damaged: what is left out of the sealed files is told, and stays on disk."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from unittest import mock

import pytest
from benchmarks.faults import small

from levada.runs import Run, SignalWriter, doctor, reseal, tail
from levada.runs.tail import SYNC, TAIL_MAGIC, mark, scan_frames


def tail_of(folder: Path) -> Path:
    return next((folder / "signals" / "rank-00000").glob("tail-*.log"))


def frames_of(content: bytes) -> list[int]:
    return [i for i in range(len(content)) if content.startswith(SYNC, i)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    small.write(tmp_path / "one", "parquet")
    return tmp_path / "one"


def longer(path: Path, frame: int) -> bytes:
    """Flip a bit of a frame's length, so that it points behind the end of the file."""
    content = bytearray(path.read_bytes())
    content[frames_of(content)[frame] + 6] ^= 1
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("frame", [1, 4, 7, 8])  # a sample, one in the middle, the last sample, the mark behind it
@pytest.mark.parametrize("by", ["doctor", "writer"])
def test_a_length_that_points_behind_the_end_is_no_crash_and_not_forgotten(run: Path, frame: int, by: str) -> None:
    content = longer(tail_of(run), frame)
    assert [damage.kind for damage in Run(run).signals().damage] == ["length"]
    assert not doctor(run).healthy
    if by == "doctor":
        reseal(run)
    else:
        SignalWriter(run, sites=small.SITES, signals=small.SIGNALS).close()
    health = doctor(run)
    assert health.healthy is (frame == 8), "a mark takes no sample with it"
    assert ("nothing is missing by it" in str(health)) is (frame == 8)
    assert health.signals[0].torn == {"tail-000002.torn": len(content)}
    assert health.signals[0].samples == 26 + (frame == 8)


def test_a_frame_that_a_crash_tore_off_was_never_whole(run: Path) -> None:
    path = tail_of(run)
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert [damage.kind for damage in Run(run).signals().damage] == ["incomplete"]
    reseal(run)
    assert doctor(run).healthy


def test_a_length_is_told_from_a_torn_frame_by_what_follows() -> None:
    flipped = bytearray(mark(7))
    flipped[6] ^= 1
    for rest, kind in ((b"", "length"), (mark(9), "length"), (mark(9)[:-2], "length")):
        parts = [part for part in scan_frames(TAIL_MAGIC + bytes(flipped) + rest) if not isinstance(part, memoryview)]
        assert [part.kind for part in parts] == [kind]
    (torn,) = scan_frames(TAIL_MAGIC + bytes(flipped)[:-1])
    assert not isinstance(torn, memoryview)
    assert torn.kind == "incomplete"


def test_a_tail_of_which_nothing_is_left_keeps_its_number(run: Path) -> None:
    folder = tail_of(run).parent
    SignalWriter(run, sites=small.SITES, signals=small.SIGNALS).close()
    kept = {}
    for number in (3, 4):
        writer = SignalWriter(run, sites=small.SITES, signals=small.SIGNALS)
        small.append(writer, [100 + number])
        path = folder / f"tail-{number:06d}.log"
        content = bytearray(path.read_bytes())
        writer.close()
        for sealed in folder.glob(f"*-{number:06d}-*"):
            sealed.unlink()
        content[20] ^= 1
        content[-1] ^= 1
        path.write_bytes(content)
        kept[f"tail-{number:06d}.torn"] = zlib.crc32(content)
        SignalWriter(run, sites=small.SITES, signals=small.SIGNALS).close()
    assert {path.name: zlib.crc32(path.read_bytes()) for path in folder.glob("*.torn")} == kept


def test_what_is_moved_aside_never_replaces_what_was(run: Path) -> None:
    path = tail_of(run)
    path.with_suffix(".torn").write_bytes(b"of an earlier day")
    content = longer(path, 2)
    reseal(run)
    assert path.with_suffix(".torn").read_bytes() == b"of an earlier day"
    assert path.with_suffix(".2.torn").read_bytes() == content


def test_a_damaged_tail_whose_writer_was_killed_after_sealing_stays_to_be_looked_at(run: Path) -> None:
    path = tail_of(run)
    content = longer(path, 2)
    reseal(run)
    path.with_suffix(".torn").unlink()
    path.write_bytes(content)  # as if it had been killed before it moved it aside
    SignalWriter(run, sites=small.SITES, signals=small.SIGNALS).close()
    assert path.with_suffix(".torn").read_bytes() == content


def test_a_level_made_again_with_the_bytes_that_it_had_is_there(run: Path) -> None:
    folder = tail_of(run).parent
    path = next(folder.glob("by16-000001-*"))
    good = path.read_bytes()
    path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    reseal(run)
    assert path.read_bytes() == good
    assert path.with_name(f"{path.name}.torn").exists()


class _Growing(io.BytesIO):
    """A file to which a writer appends while it is read: more is there after its end was seen."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size) or mark(9)

    def fileno(self) -> int:
        return -1


@pytest.mark.parametrize("limit", [1000, len(TAIL_MAGIC + mark(7))])
def test_a_tail_that_grows_while_it_is_read_is_not_too_long(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(tail, "MAX_TAIL", limit)
    monkeypatch.setattr(tail.os, "fstat", lambda _: mock.Mock(st_size=len(TAIL_MAGIC + mark(7))))
    path = mock.Mock(spec=Path)
    path.open.return_value = _Growing(TAIL_MAGIC + mark(7))
    assert tail.read_tail(path, {}) == (tail.Samples(marks=[7]), [])


def test_a_file_that_is_longer_than_a_tail_may_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MAX_TAIL", len(TAIL_MAGIC + mark(7)))
    path = tmp_path / "tail-000001.log"
    path.write_bytes(TAIL_MAGIC + mark(7) + mark(8))
    samples, damages = tail.read_tail(path, {})
    assert samples.marks == [7]
    assert [(each.kind, each.num_bytes) for each in damages] == [("length", len(mark(8)))]
