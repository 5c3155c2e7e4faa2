"""A run of which this user may not read a part: said, and neither taken for gone nor in the way of other runs."""

from __future__ import annotations

import errno
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from levada._errors import UsageError
from levada.cli import main
from levada.commands.runs import doctor as doctor_command
from levada.runs import RunWriter, SignalWriter, doctor, find_runs
from levada.runs.codes import encode
from levada.runs.exporters import export
from levada.runs.reader import require_readable
from levada.watching import Continue


def write(folder: Path) -> Path:
    with RunWriter.create(folder, kind="watch", name=folder.name) as writer:
        with SignalWriter(folder, sites=[{"name": "a"}], signals=["x"]) as signals:
            signals.append(0, 0.0, encode([1.0]), {"loss": 1.0})
        writer.append("end", steps=1, samples=1, dropped=0, keep=4096)
    (folder / "bundles").mkdir()
    return folder


def forbid(monkeypatch: pytest.MonkeyPatch, forbidden: Path) -> None:
    """Let a file be one of somebody else's: the superuser may read all, and tests may run as that."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != forbidden and access(path, mode))


@pytest.mark.parametrize("part", ["", "run.json", "events.log", "bundles", "signals", "signals/rank-00000", "full"])
def test_what_may_not_be_read_is_named_and_not_called_gone(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write(tmp_path / "run")
    forbidden = next(run.rglob("full-*")) if part == "full" else run / part
    assert doctor(run).healthy
    forbid(monkeypatch, forbidden)
    for look in (doctor, lambda path: export(path, "tensorboard", tmp_path / "out")):
        with pytest.raises(UsageError, match=f"{forbidden.name if part else 'its folder'} is not for this user"):
            look(run)


def test_a_folder_that_may_be_listed_and_not_entered_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, access = write(tmp_path / "run"), os.access
    closed = run / "signals" / "rank-00000"
    monkeypatch.setattr(os, "access", lambda p, mode: access(p, mode) and not (Path(p) == closed and mode & os.X_OK))
    with pytest.raises(UsageError, match="rank-00000 is not for this user"):
        doctor(run)


@pytest.mark.parametrize("name", ["writer.lock", ".full-000002.17"])
def test_what_no_reader_reads_may_be_closed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write(tmp_path / "run")
    (run / "signals" / "rank-00000" / name).touch()
    forbid(monkeypatch, run / "signals" / "rank-00000" / name)
    assert doctor(run).healthy


@pytest.mark.parametrize("part", ["signals/rank-00000/tail-000009.log", "bundles"])
def test_what_a_writer_removes_or_makes_meanwhile_is_no_matter_of_permission(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, access, asked = write(tmp_path / "run"), os.access, list[Path]()
    (run / "bundles").rmdir()
    (run / "signals" / "rank-00000" / "tail-000009.log").touch()

    def meanwhile(path: Path, mode: int) -> bool:
        if path == run / part and not asked:
            asked.append(path)
            if path.exists():
                path.unlink()
            else:
                path.mkdir()
                return False  # as it was before
        return access(path, mode)

    monkeypatch.setattr(os, "access", meanwhile)
    require_readable(run)
    assert asked == [run / part]


@pytest.mark.parametrize("part", ["run.json", "events.log", ""])
def test_every_command_says_the_same_of_what_may_not_be_read(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = write(tmp_path / "run")
    if part:
        forbid(monkeypatch, run / part)
        told = f"{run}: a run is read by who may read all of it, and {part} is not for this user. Ask its owner."
    else:
        close(monkeypatch, run)
        told = f"{run}: this folder cannot be listed (Permission denied). Ask its owner."
    # Of a file of somebody else's the system says so as well.
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path) if path == run / part else reads(path))
    out = ["--out", str(tmp_path / "out")]
    page = ["-o", str(tmp_path / "page.html")]
    for words in (["doctor"], ["report", *page], ["export", "--to", "tensorboard", *out]):
        assert main([words[0], str(run), *words[1:]]) == 2
        assert told in capsys.readouterr().err


reads = Path.read_bytes


def refuse(path: Path) -> bytes:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize("lost", ["run.json", "events.log"])
def test_a_run_that_lost_a_file_is_no_folder_without_a_run(tmp_path: Path, lost: str, capsys: Any) -> None:
    run = write(tmp_path / "run")
    (run / lost).unlink()
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    told = f"{run}: a run is read by its {lost}, and there is no such file. Try: levada doctor {run}"
    assert capsys.readouterr().err == f"levada report: {told}\n"


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_nothing_is_said_to_be_kept_where_a_log_was_lost(tmp_path: Path, damage: str) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name="run") as writer:
        writer.append("sampled", step=1)
    with pytest.raises(UsageError, match="keeps no signals, losses or findings"):
        export(tmp_path / "run", "tensorboard", tmp_path / "out")
    log = tmp_path / "run" / "events.log"
    log.write_bytes(b"xxxx") if damage == "damaged" else log.unlink()
    with pytest.raises(UsageError, match=r"of its events.log nothing can be read. Look at it: levada doctor "):
        export(tmp_path / "run", "tensorboard", tmp_path / "out")


def test_others_are_looked_at_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    closed, _ = write(tmp_path / "runs" / "closed"), write(tmp_path / "runs" / "open")
    forbid(monkeypatch, closed / "signals")
    assert main(["doctor", str(tmp_path / "runs")]) == 1
    shown = capsys.readouterr()
    assert "signals is not for this user" in shown.err
    assert "watch 'open'" in shown.out
    assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "page.html")]) == 1
    assert "is not for this user. Ask its owner. The page is without it." in capsys.readouterr().err
    assert main(["doctor", str(closed)]) == 2


def close(monkeypatch: pytest.MonkeyPatch, *closed: Path, error: OSError | None = None) -> None:
    """Let folders be somebody else's, of mode 0700."""
    scandir = os.scandir

    def listed(path: Any = ".") -> Any:
        if Path(path) in closed:
            raise error or PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)


def test_a_folder_that_cannot_be_listed_is_told_and_no_run_beside_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    closed, opened = tmp_path / "runs" / "closed", write(tmp_path / "runs" / "open")
    closed.mkdir()
    close(monkeypatch, closed, opened / "bundles")  # a part of a run is a matter of the run
    page = ["-o", str(tmp_path / "page.html")]
    for command in (["doctor", str(closed.parent)], ["report", str(closed.parent), *page]):
        assert main(command) == 1
        shown = capsys.readouterr()
        assert shown.err.splitlines()[0].startswith(f"{closed}: this folder cannot be listed (Permission denied).")
        assert len(shown.err.splitlines()) == 1
        assert shown.out
    assert find_runs(closed.parent) == [opened]


def test_a_reader_of_the_output_that_ends_is_no_fault_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        with (write(tmp_path / name) / "events.log").open("ab") as log:
            log.write(b"torn")  # so that each has something to say before it is looked at

    def ended(sentence: str, *, stderr: bool = False) -> None:
        if not stderr:
            raise BrokenPipeError

    monkeypatch.setattr("levada.commands.runs.tell", ended)
    with pytest.raises(BrokenPipeError):
        doctor_command(Namespace(run=str(tmp_path), reseal=True))


def test_a_folder_that_goes_meanwhile_is_no_folder_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[OSError]()
    (tmp_path / "gone").mkdir()
    close(monkeypatch, tmp_path / "gone", error=FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "gone")))
    assert find_runs(tmp_path, onerror=told.append) == told == []


def test_where_nothing_can_be_listed_no_run_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "runs" / "closed").mkdir(parents=True)
    page = ["-o", str(tmp_path / "page.html")]
    for closed in ("runs/closed", "runs"):
        with monkeypatch.context() as patch:
            close(patch, tmp_path / closed)
            for command in (["doctor", str(tmp_path / "runs")], ["report", str(tmp_path / "runs"), *page]):
                assert main(command) == 2
                first, last = capsys.readouterr().err.splitlines()
                assert first.startswith(f"{tmp_path / closed}: this folder cannot be listed (Permission denied).")
                assert "no run in" in last.lower()
            if closed == "runs":
                with pytest.raises(UsageError, match=r"can be listed, and this cannot \(Permission denied\)"):
                    find_runs(tmp_path / closed)
    assert not (tmp_path / "page.html").exists()


def test_an_error_of_the_system_at_one_run_keeps_no_other_from_being_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    broken, _ = write(tmp_path / "runs" / "broken"), write(tmp_path / "runs" / "open")
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == broken / "run.json":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    page = ["-o", str(tmp_path / "page.html")]
    for command in (["doctor", str(tmp_path / "runs")], ["report", str(tmp_path / "runs"), *page]):
        assert main(command) == 1
        shown = capsys.readouterr()
        assert "cannot be used: Input/output error." in shown.err
        assert shown.out
    assert main(["doctor", str(broken)]) == 2


@pytest.mark.parametrize("to", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_writes_to_folders_takes_no_address(tmp_path: Path, to: str) -> None:
    with pytest.raises(UsageError, match="is written to a folder, got the address 's3://bucket/x'"):
        export(write(tmp_path / "run"), to, "s3://bucket/x")


def test_a_step_that_no_record_can_hold_is_refused() -> None:
    Continue("runs/mine", 2**62 - 1)
    with pytest.raises(UsageError, match=r"less than 2\^62, got 4611686018427387904"):
        Continue("runs/mine", 2**62)
