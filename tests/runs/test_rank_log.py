"""What processes other than the first say: whole events, mended like the run's own log, seen by the doctor."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from levada._errors import UsageError
from levada.runs import Run, RunWriter, doctor, reseal
from levada.runs.folders import rank_folder
from levada.runs.rank_log import RANK_LOG, RankLog
from levada.runs.standing import Standing
from levada.watching.record.recording import Recording


def begun(folder: Path) -> RankLog:
    RunWriter.create(folder, kind="watch", name="mine").close()
    log = RankLog(rank_folder(folder, 1))
    for number in range(3):
        log.append("finding", number=number)
    return log


def numbers(folder: Path) -> list[int]:
    return [event["number"] for event in Run(folder).events("finding", rank=1)]


def test_each_process_has_events_of_its_own(tmp_path: Path) -> None:
    log = begun(tmp_path)
    assert numbers(tmp_path) == [0, 1, 2]  # while it is written
    assert list(Run(tmp_path).events()) == list(Run(tmp_path).events(rank=2)) == []
    log.close()
    again = RankLog(log.path.parent)
    assert again.goes_on
    again.append("finding", number=3)
    again.close()
    again.close()
    assert numbers(tmp_path) == [0, 1, 2, 3]
    (health,) = doctor(tmp_path).signals
    assert health.healthy


def test_a_log_is_made_with_its_first_event(tmp_path: Path) -> None:
    log = RankLog(rank_folder(tmp_path, 1))
    log.close()
    assert not list(tmp_path.iterdir())
    assert not log.goes_on


def test_an_event_that_the_disk_refuses_leaves_a_log_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = begun(tmp_path), os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data[:5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        log.append("finding", number=3)
    monkeypatch.undo()
    log.append("finding", number=4)
    log.close()
    assert numbers(tmp_path) == [0, 1, 2, 4]


@pytest.mark.parametrize("mended", ["by a writer", "by the doctor"])
def test_a_damaged_log_keeps_every_good_event(tmp_path: Path, mended: str) -> None:
    log = begun(tmp_path)
    log.close()
    data = bytearray(log.path.read_bytes())
    data[data.index(b'"number":1')] ^= 1
    log.path.write_bytes(bytes(data) + b"torn")
    assert numbers(tmp_path) == [0]
    (health,) = doctor(tmp_path).signals
    assert [damage.message.partition(":")[0] for damage in health.damage] == [RANK_LOG]
    if mended == "by a writer":
        again = RankLog(log.path.parent)
        again.append("finding", number=3)
        again.close()
    else:
        assert "rank 1: verdicts.log is written again, the damaged file is moved aside" in reseal(tmp_path)
    assert numbers(tmp_path) == [0, 2, *([3] if mended == "by a writer" else [])]
    (health,) = doctor(tmp_path).signals
    assert health.damage == ()
    assert list(health.torn) == ["verdicts.torn"]


def test_two_writers_of_one_log_are_refused(tmp_path: Path) -> None:
    log = begun(tmp_path)
    with pytest.raises(UsageError, match=r"has one writer at a time, and another holds it \(process \d+ on "):
        RankLog(log.path.parent)
    assert list(log.path.parent.glob("*.torn*")) == []
    log.close()
    RankLog(log.path.parent).close()


def test_a_log_that_two_begin_is_the_first_one_s(tmp_path: Path) -> None:
    first, second = (RankLog(rank_folder(tmp_path, 1)) for _ in range(2))
    first.append("finding", number=0)
    first.path.write_bytes(first.path.read_bytes() + b"half")  # of an event that is being written
    with pytest.raises(UsageError, match="has one writer at a time"):
        second.append("finding", number=1)
    second.close()
    assert first.path.read_bytes().endswith(b"half"), "what another writes was mended away"
    first.close()


def test_a_log_that_is_written_is_not_mended(tmp_path: Path) -> None:
    log = begun(tmp_path)
    with log.path.open("ab") as file:
        file.write(b"half")
    with pytest.raises(UsageError, match="has one writer at a time"):
        reseal(tmp_path)
    assert log.path.read_bytes().endswith(b"half")
    log.close()
    assert "rank 1: verdicts.log is written again, the damaged file is moved aside" in reseal(tmp_path)


def test_a_watch_of_another_process_of_one_rank_is_refused(tmp_path: Path) -> None:
    log = begun(tmp_path)
    watch = SimpleNamespace(sites=(), findings=[], overhead=0.0, standing=Standing(), steps=0)
    with pytest.raises(UsageError, match="has one writer at a time"):
        Recording(tmp_path, watch, rank=1)
    log.close()
    Recording(tmp_path, watch, rank=1).close()
