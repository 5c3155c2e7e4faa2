"""One writer per run: what a forked child may do, and what a lock that cannot be taken says."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from levada._errors import UsageError
from levada.runs import Run, RunWriter, lock
from levada.runs.lock import WriterLock


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
def test_a_forked_child_can_neither_write_nor_cut_its_parents_events(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", kind="study", name="forked")
    writer.append("result", seed=0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            writer.append("result", seed=99)
        except UsageError as error:
            status = 0 if "forked child" in str(error) else 2
        finally:
            writer.close()
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    writer.append("result", seed=1)
    writer.close()
    assert [event["seed"] for event in Run(tmp_path / "run").events("result")] == [0, 1]
    assert Run(tmp_path / "run").damage is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
def test_a_child_that_is_forked_while_a_lock_is_looked_at_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WriterLock(tmp_path).release()
    asked, own, children = lock._try, threading.get_ident(), list[int]()
    stays, leaves = os.pipe()

    def fork(descriptor: int) -> None:
        asked(descriptor)
        if children or threading.get_ident() != own:  # another thread would go on in a child of its own
            return
        child = os.fork()
        if child == 0:
            os.close(leaves)
            os.read(stays, 1)  # as long as its parent wants
            os._exit(0)
        children.append(child)

    monkeypatch.setattr(lock, "_try", fork)
    try:
        assert lock.is_held(tmp_path) is False
        WriterLock(tmp_path).release()
    finally:
        os.close(leaves)
        os.waitpid(children[0], 0)
        os.close(stays)


def test_of_a_lock_that_may_not_be_read_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WriterLock(tmp_path).release()

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert lock.is_held(tmp_path) is None


@pytest.mark.parametrize(("number", "held"), [(errno.EWOULDBLOCK, True), (errno.EACCES, True), (errno.ENOLCK, False)])
def test_only_a_lock_that_another_holds_is_said_to_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, held: bool
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("levada.runs.lock._take", refuse)
    if held:
        with pytest.raises(UsageError, match="one writer at a time"):
            WriterLock(tmp_path)
    else:
        with pytest.raises(OSError, match="could not be locked for one writer, write it to another file system"):
            WriterLock(tmp_path)
