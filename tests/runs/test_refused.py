"""What a disk that is full, and an interrupt at the worst moment, leave of a run: whole events, and a way on."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from levada.cli import main
from levada.runs import Run, RunWriter, SignalWriter
from levada.runs.codes import encode

WRITE = os.write


class Full:
    """Takes a few bytes of what is written, then has no more room."""

    def __init__(self, room: int, reason: int = errno.ENOSPC) -> None:
        self.room, self.reason = room, reason

    def __call__(self, descriptor: int, data: Any) -> int:
        if not self.room:
            raise OSError(self.reason, "No space left on device")
        taken = WRITE(descriptor, data[: self.room])
        self.room -= taken
        return taken


def test_a_folder_can_be_locked_again_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Full(0))
        with pytest.raises(OSError, match="No space left"):
            RunWriter.create(tmp_path, kind="check", name="full")
    RunWriter.create(tmp_path, kind="check", name="full").close()


def test_no_event_is_lost_where_an_interrupt_came_behind_its_last_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int, data: Any) -> int:
        WRITE(descriptor, data)
        raise KeyboardInterrupt

    with RunWriter.create(tmp_path, kind="check", name="mine") as writer:
        writer.append("note", i=0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.append("note", i=1)
        writer.append("note", i=2)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", Full(7))
            with pytest.raises(OSError, match="those before it are safe"):
                writer.append("note", i=3)
        writer.append("note", i=4)
    assert [event["i"] for event in Run(tmp_path).events()] == [0, 2, 4]
    assert Run(tmp_path).damage is None


def test_no_reader_sees_a_tail_that_does_not_begin_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunWriter.create(tmp_path, kind="watch", name="mine").close()
    seen, opened = list[str](), os.open

    def look(path: Any, *rest: Any, **options: Any) -> int:
        descriptor = opened(path, *rest, **options)
        if "tail-" in str(path):
            seen.extend(damage.message for damage in Run(tmp_path).signals().damage)
        return descriptor

    with SignalWriter(tmp_path, sites=[{"name": "a"}], signals=["x"]) as writer:
        monkeypatch.setattr(os, "open", look)
        writer.append(0, 0.0, encode([1.0]))
    assert (writer.problem, seen) == (None, [])
    assert Run(tmp_path).signals().read("x") == [[1.0]]


@pytest.mark.parametrize("reason", ["ENOSPC", "EDQUOT", "EFBIG"])
def test_a_full_disk_is_no_defect(
    tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not hasattr(errno, reason):
        pytest.skip(f"this system has no {reason}")
    RunWriter.create(tmp_path, kind="check", name="mine").close()
    with (tmp_path / "events.log").open("ab") as log:
        log.write(b"torn")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Full(0, getattr(errno, reason)))
        assert main(["doctor", "--reseal", str(tmp_path)]) == 2
    assert "Make room, or write to another disk." in capsys.readouterr().err
