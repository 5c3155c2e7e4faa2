"""What a writer of signals takes, refuses, and leaves alone, so that one bad value does not end a record."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faults import small

from levada._errors import UsageError
from levada.runs import Run, RunWriter, SignalWriter, doctor, reseal
from levada.runs.codes import encode
from levada.runs.segments import places


def new_run(folder: Path) -> Path:
    RunWriter.create(folder, kind="watch", name="test").close()
    return folder


def levels(folder: Path) -> list[tuple[int, str]]:
    return [(place.number, place.level) for place in places(folder)]


@pytest.mark.parametrize("order", [None, 1.5, 2**40, True, "1"])
def test_an_order_that_no_file_can_hold_is_refused_at_once(tmp_path: Path, order: Any) -> None:
    with pytest.raises(UsageError, match="an integer of 32 bits"):
        SignalWriter(new_run(tmp_path), sites=[{"name": "a", "order": order}], signals=["x"])


def test_names_that_have_no_utf8_are_refused_and_those_of_scalars_escaped(tmp_path: Path) -> None:
    new_run(tmp_path)
    for sites, signals in (([{"name": "a\udc80"}], ["x"]), ([{"name": "a"}], ["x\udc80"])):
        with pytest.raises(UsageError, match="in UTF-8"):
            SignalWriter(tmp_path, sites=sites, signals=signals)
    with SignalWriter(tmp_path, sites=[{"name": "schön"}], signals=["x"]) as writer:
        writer.append(0, 0.0, encode([1.0]), {"l\udc80": 1.0, "größe": 2.0})
    assert (writer.problem, writer.dropped) == (None, 0)
    assert Run(tmp_path).signals().scalar_names == ("l\\udc80", "größe")


def test_a_tail_that_cannot_be_sealed_is_told_left_alone_and_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run(tmp_path)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("levada.runs.tables._is_order", lambda order: True)  # an older levada looked at names only
        with SignalWriter(tmp_path, sites=[{"name": "a", "order": None}], signals=["x"]) as writer:
            writer.append(0, 0.0, encode([1.0]))
    assert levels(writer.folder) == [(1, "tail")]
    with (
        pytest.warns(RuntimeWarning, match="could not be sealed, and stays as it is: tail-000001"),
        SignalWriter(tmp_path, sites=[{"name": "a"}], signals=["x"]) as writer,
    ):
        writer.append(1, 0.0, encode([2.0]))
    assert (writer.problem, writer.dropped) == (None, 0)
    assert Run(tmp_path).signals().read("x") == [[1.0], [2.0]]
    (sentence,) = reseal(tmp_path)
    assert "tail 1 stays as it is" in sentence
    assert doctor(tmp_path).healthy


def test_a_run_goes_on_where_what_came_before_is_parquet_and_pyarrow_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write(tmp_path / "run", "parquet")
    writer = SignalWriter(tmp_path / "run", sites=small.SITES, signals=small.SIGNALS)
    writer.close()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        patch.setattr("levada.runs.signal_writer.has_parquet", lambda: False)
        with SignalWriter(tmp_path / "run", sites=small.SITES, signals=small.SIGNALS) as writer:
            small.append(writer, [27, 28])
        assert (writer.problem, writer.dropped) == (None, 0)
    assert Run(tmp_path / "run").signals().steps == tuple(range(0, 29 * small.EVERY, small.EVERY))
    assert small.judge(tmp_path / "run", 29) == "harmless"


def test_a_file_that_a_reader_holds_open_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_run(tmp_path)
    with monkeypatch.context() as patch:

        def held(path: Path, missing_ok: bool = False) -> None:
            if not path.name.startswith("."):
                raise PermissionError(13, "another process uses it", str(path))

        patch.setattr(Path, "unlink", held)
        with SignalWriter(tmp_path, sites=small.SITES, signals=small.SIGNALS, keep=256) as writer:
            for number in range(256 * 4):
                writer.append(number, 0.0, small.codes(number))
                if number % 64 == 0:
                    writer.flush()
    assert (writer.problem, writer.dropped) == (None, 0)
    assert Run(tmp_path).signals().steps == tuple(range(256 * 4))
    assert (1, "tail") in levels(writer.folder)
    SignalWriter(tmp_path, sites=small.SITES, signals=small.SIGNALS, keep=256).close()
    found = levels(writer.folder)
    assert not [number for number, level in found if level == "tail"]
    assert [number for number, level in found if level == "full"] == [4]
    assert doctor(tmp_path).healthy


@pytest.mark.skipif(os.name != "posix", reason="only POSIX forces folders to the disk")
def test_the_name_of_a_new_tail_and_of_a_torn_one_is_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run(tmp_path)
    writer = SignalWriter(tmp_path, sites=small.SITES, signals=small.SIGNALS)
    writer.flush()
    real, folders = os.fsync, []

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            folders.append(sorted(path.suffix for path in writer.folder.iterdir() if path.suffix in (".log", ".torn")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    small.append(writer, [0, 1])
    assert folders == [[".log"]]
    path = writer.folder / "tail-000001.log"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    writer.close()
    assert folders[-1] == [".torn"]
