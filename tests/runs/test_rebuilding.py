"""A damaged manifest: what the doctor says, and what is written again from the rest."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from levada._errors import UsageError
from levada.cli import main
from levada.report import render_report
from levada.runs import Run, RunWriter, doctor, rebuilding, reseal
from levada.runs.rebuilding import rebuilt


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunWriter.create(tmp_path / "mine", kind="train", name="named", config={"run": {"steps": 2}}) as writer:
        writer.append("losses", first=0, loss=[2.0, 1.0])
    (tmp_path / "mine" / "config.toml").write_text("[run]\nsteps = 3\n")
    return tmp_path / "mine"


@pytest.mark.parametrize("word", [b"named", b'crc32": 0123', b'"crc', b"schema", b'"steps": '])
def test_one_wrong_bit_is_put_right_and_all_is_certain(run: Path, word: bytes) -> None:
    before, path = Run(run).manifest, run / "run.json"
    data = bytearray(good := path.read_bytes())
    at = data.index(word) + len(word) // 2 if b"crc32" not in word else data.index(b'crc32": ') + 9  # its 2nd digit
    data[at] ^= 2
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"damaged .*--reseal .* writes the manifest again from that"):
        Run(run)
    told = str(doctor(run))
    assert "one bit of it was wrong; with that put right its checksum agrees, and all is certain" in told
    assert "levada doctor" not in told, "the doctor does not send to itself"
    assert path.read_bytes() == bytes(data), "the doctor changes nothing"
    assert "the damaged one is kept in run.json.torn-1" in reseal(run)[0]
    assert Run(run).manifest == before
    assert (path.read_bytes(), (run / "run.json.torn-1").read_bytes()) == (good, bytes(data))
    assert reseal(run) == []
    assert doctor(run).healthy, "nothing is missing, though the damaged one is kept"
    assert main(["doctor", str(run)]) == 0


def test_of_a_torn_manifest_what_is_certain_is_told_from_what_is_not(run: Path) -> None:
    path = run / "run.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:4]))  # up to the name
    health = doctor(run)
    assert not health.healthy
    assert (health.manifest, health.types) == (None, {"losses": 1})
    for told in (
        "as: train 'named' (certain: the kind, by its events; not certain, as the damaged file has it: name;",
        "not certain, by config.toml, as of the last continuation: config; lost: created, versions, command)",
    ):
        assert told in str(health)
    assert main(["doctor", "--reseal", str(run)]) == 1, "not all of it is certain"
    doubts = "run.json was damaged and is written again; not certain: name, created, versions, command, config"
    assert doubts in str(doctor(run)), "it is said for as long as it is so"
    for torn in run.glob("*.torn-*"):
        torn.unlink()
    assert not doctor(run).healthy
    manifest = Run(run).manifest
    assert (manifest.kind, manifest.name, manifest.config) == ("train", "named", {"run": {"steps": 3}})
    assert manifest.uncertain == ("name", "created", "versions", "command", "config")
    assert json.loads(path.read_text())["uncertain"] == list(manifest.uncertain)
    assert "written again. Not certain: name, created, versions, command, config." in render_report([run])
    RunWriter.open(run).close()


def test_a_kind_that_the_events_contradict_is_not_certain(run: Path) -> None:
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**values, "kind": "check", "name": "other"}))
    found = rebuilt(run)
    assert found is not None
    assert (found.manifest.kind, found.manifest.uncertain[:2]) == ("train", ("kind", "name"))
    told = "as the damaged file has it: name, created, versions, command, cwd; not certain, by the events, where the"
    assert (
        f"{told} damaged file says 'check': kind; not certain, by config.toml, as of the last continuation"
        in found.told
    )


def test_an_empty_name_is_told_as_the_folders(run: Path) -> None:
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**values, "name": ""}))
    found = rebuilt(run)
    assert found is not None
    assert found.manifest.name == "mine"
    assert (
        "as the damaged file has it: created, versions, command, cwd; not certain, by the folder: name;" in found.told
    )


def test_what_was_not_certain_stays_so_when_a_bit_is_put_right(run: Path) -> None:
    (run / "run.json").unlink()
    reseal(run)
    before, data = Run(run).manifest, bytearray((run / "run.json").read_bytes())
    assert before.uncertain == ("name", "created", "versions", "command", "config")
    data[data.index(b"mine")] ^= 1
    (run / "run.json").write_bytes(data)
    (told,) = reseal(run)
    assert "it is as it was, not certain: name, created, versions, command, config)" in told
    assert "all is certain" not in told
    assert Run(run).manifest == before


def test_a_bit_that_makes_the_schema_a_newer_one_is_put_right(run: Path) -> None:
    before, path = Run(run).manifest, run / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 3'))
    with pytest.raises(UsageError, match=r"Update levada to read this run; `levada doctor .*` says whether the number"):
        Run(run)
    told = str(doctor(run))
    assert "run.json is damaged (it is of schema 3). --reseal writes it again, as: train 'named' (one bit" in told
    assert "Update levada" not in told
    reseal(run)
    assert Run(run).manifest == before


def test_one_wrong_bit_is_looked_for_only_in_a_file_that_is_searched_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.orig_argv", ["pytest"])  # it is kept, and counts
    for size, certain in ((3000, True), (4500, False)):
        path = tmp_path / f"{size}"
        with RunWriter.create(path, kind="watch", name="mine", config={"text": "a" * size}) as writer:
            writer.append("loss", steps=[0], values=[1.0])
        data = bytearray((path / "run.json").read_bytes())
        data[data.index(b"aaa")] ^= 2
        (path / "run.json").write_bytes(data)
        found = rebuilt(path)
        assert found is not None
        assert (found.manifest.uncertain == ()) is certain


@pytest.mark.parametrize("change", [{"config": {"lr": float("nan")}}, {"versions": {"torch": float("inf")}}])
def test_what_no_manifest_may_hold_is_written_as_text(run: Path, change: dict[str, object]) -> None:
    values = json.loads((run / "run.json").read_text())
    (run / "config.toml").unlink()
    (run / "run.json").write_text(json.dumps({**values, "crc32": 0, **change}))
    assert len(reseal(run)) == 1
    manifest = Run(run).manifest
    assert "nan" in manifest.config.values() or "inf" in manifest.versions.values()
    assert [path.name for path in run.glob("run.json.torn-*")] == ["run.json.torn-1"]


def test_a_date_in_the_configuration_makes_it_no_settings(run: Path) -> None:
    (run / "run.json").write_text("{")
    (run / "config.toml").write_text("[run]\nbegan = 2026-11-26\n")
    assert "lost: created, versions, command, config" in reseal(run)[0]
    assert Run(run).manifest.config == {}


def test_a_mending_that_failed_leaves_one_copy_however_often_it_is_tried(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "run.json").write_text("{")
    write = rebuilding.write_atomically

    def full(path: Path, data: bytes, **options: Path) -> None:
        if path.name == "run.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data, **options)

    monkeypatch.setattr(rebuilding, "write_atomically", full)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            reseal(run)
    monkeypatch.undo()
    assert "kept in run.json.torn-1" in reseal(run)[0]
    assert [path.name for path in run.glob("run.json.torn-*")] == ["run.json.torn-1"]


def test_a_folder_in_the_place_of_the_manifest_is_told_and_stays(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").mkdir()
    for refused in (Run, reseal):
        with pytest.raises(UsageError, match=r"run\.json: a run's manifest is a file, and this is a folder\. Move it"):
            refused(run)
    told = str(doctor(run))
    assert (
        "this is a folder. Move it to another place. `levada doctor --reseal` then writes the manifest again." in told
    )
    (run / "run.json").rename(run / "moved")
    assert "run.json is written again (certain: the kind" in reseal(run)[0]


def test_a_manifest_of_no_bytes_is_told_as_empty(run: Path) -> None:
    (run / "run.json").write_bytes(b"")
    assert "run.json is damaged (it is empty). --reseal writes it again, as: train 'mine'" in str(doctor(run))
    assert "kept in run.json.torn-1" in reseal(run)[0]
    assert (run / "run.json.torn-1").read_bytes() == b""


@pytest.mark.parametrize("torn", [False, True])
def test_in_a_folder_that_may_not_be_written_to_the_doctor_looks_and_nothing_is_sealed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], torn: bool
) -> None:
    if torn:
        (run / "run.json").write_text("{")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    open_file = os.open

    def refuse(path: str, flags: int, *more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return open_file(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)  # permissions do not bind root
    assert main(["doctor", str(run)]) == int(torn)
    assert "1 frame, " in capsys.readouterr().out
    assert main(["doctor", "--reseal", str(run)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told == (
        f"levada doctor: {run}: a run is sealed again where it lies, and this cannot be written to "
        "(Read-only file system). Copy it, and seal the copy."
    )
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_manifest_that_is_gone_is_written_again(run: Path) -> None:
    (run / "run.json").unlink()
    assert "run.json is damaged (missing). --reseal writes it again" in str(doctor(run))
    assert "not certain, by the folder: name" in reseal(run)[0]
    assert Run(run).manifest.name == "mine"


def test_nothing_is_made_up(tmp_path: Path, run: Path) -> None:
    with RunWriter.create(tmp_path / "own", kind="mine", name="named") as writer:
        writer.append("note", text="")
    (tmp_path / "own" / "run.json").write_text("{")
    assert "nothing says of which kind the run is. The rest can be read" in str(doctor(tmp_path / "own"))
    assert reseal(tmp_path / "own") == []
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(newer := json.dumps({**values, "schema": 2, "crc32": 0}))
    assert "run.json is of schema 2, and this levada reads 1 and older. Update levada" in str(doctor(run))
    with pytest.raises(UsageError, match="Update levada"):
        reseal(run)
    assert (run / "run.json").read_text() == newer


def test_a_writer_at_work_is_left_alone(run: Path) -> None:
    with RunWriter.open(run):
        (run / "run.json").write_text("{")
        with pytest.raises(UsageError, match="one writer at a time"):
            reseal(run)
