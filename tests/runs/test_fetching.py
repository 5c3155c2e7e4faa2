"""A run at an address, read while it is written there, by several threads, and by forked children of its writer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from levada._errors import UsageError
from levada.runs import Run, RunWriter, SignalWriter
from levada.runs.address import cache_folder
from levada.runs.codes import encode
from levada.runs.remote import Mirror, upload

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("levada.runs.address._PAUSES", (0.0, 0.0))
    MemoryFileSystem.store.clear()


def before_copying(monkeypatch: pytest.MonkeyPatch, act: Callable[[str], None]) -> None:
    copy = MemoryFileSystem.get_file

    def get_file(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        act(path)
        copy(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)


def test_a_tail_that_is_sealed_while_it_is_copied_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, copied = tmp_path / "run", list[str]()
    RunWriter.create(folder, kind="watch", name="mine").close()
    writer = SignalWriter(folder, sites=[{"name": "a"}], signals=["x"])
    writer.append(0, 0.0, encode([2.0]))
    assert writer.flush()
    upload(folder, URL)

    def seal(path: str) -> None:
        copied.append(path.rsplit("/", 1)[-1].partition("-")[0])
        if "tail-" in path:
            writer.close()
            upload(folder, URL)

    before_copying(monkeypatch, seal)
    assert Run(URL).signals().read("x") == [[2.0]]
    assert copied.count("sites") == 2  # the table and its copy, once each


def test_a_file_that_is_gone_is_not_taken_for_there_because_it_was_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunWriter.create(tmp_path / "run", kind="watch", name="mine").close()
    (tmp_path / "run" / "tail").write_text("x", encoding="utf-8")
    upload(tmp_path / "run", URL)
    find, exists, listed, copied = MemoryFileSystem.find, MemoryFileSystem.exists, set[str](), list[str]()

    def find_and_keep(self: Any, path: str, **options: Any) -> Any:
        found = find(self, path, **options)
        listed.update(found)
        return found

    def remove(path: str) -> None:
        copied.append(path.rsplit("/", 1)[-1])
        if path.endswith("/tail"):
            MemoryFileSystem.store.pop(path)

    # As the file system of S3, which answers from what it has listed.
    monkeypatch.setattr(MemoryFileSystem, "find", find_and_keep)
    monkeypatch.setattr(MemoryFileSystem, "exists", lambda self, path: path in listed or exists(self, path))
    monkeypatch.setattr(MemoryFileSystem, "invalidate_cache", lambda self, path=None: listed.clear())
    before_copying(monkeypatch, remove)
    assert Run(URL).manifest.name == "mine"
    assert copied == ["events.log", "tail", "run.json"]


def test_a_file_that_is_listed_and_never_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunWriter.create(tmp_path / "run", kind="watch", name="mine").close()
    upload(tmp_path / "run", URL)
    find = MemoryFileSystem.find
    listed = {"/bucket/run/full-1": {"name": "/bucket/run/full-1", "size": 1, "type": "file"}}
    monkeypatch.setattr(MemoryFileSystem, "find", lambda self, path, **options: find(self, path, **options) | listed)
    with pytest.raises(UsageError, match=r"it cannot be read .*full-1"):
        Run(URL)


def test_threads_that_read_one_address_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunWriter.create(tmp_path / "run", kind="watch", name="mine").close()
    upload(tmp_path / "run", URL)
    inside, most, found = list[str](), list[int](), list[str]()

    def meet(path: str) -> None:
        inside.append(path)
        time.sleep(0.05)  # nobody else comes
        most.append(len(inside))
        inside.remove(path)

    def read() -> None:
        found.append(Run(URL).manifest.name)

    before_copying(monkeypatch, meet)
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["mine"] * 4
    assert most == [1, 1]  # log and manifest, by the first of them alone


def test_a_place_for_copies_that_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunWriter.create(tmp_path / "run", kind="watch", name="mine").close()
    upload(tmp_path / "run", URL)
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be written to .*LEVADA_CACHE"):
        Run(URL)


def test_an_address_need_not_be_utf8() -> None:
    assert cache_folder("fetched", "memory://b/\udc80x").name == "_x"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_says_nothing_of_its_parents_upload(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "run", kind="watch", name="mine").close()
    mirror = Mirror(tmp_path / "run", URL, every=3600.0)
    told = list[str]()
    mirror._warn = told.append  # type: ignore[method-assign]
    end = time.monotonic() + 120.0
    while mirror.pending and time.monotonic() < end:
        time.sleep(0.005)
    (tmp_path / "run" / "more").write_text("x", encoding="utf-8")
    child = os.fork()
    if not child:
        mirror.close()
        os._exit(len(told))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    mirror.close()
    assert (told, dict(mirror.pending)) == ([], {})
