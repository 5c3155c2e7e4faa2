"""A damaged manifest: what the doctor says, and what is written again from the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from levada._errors import UsageError
from levada.cli import main
from levada.report import render_report
from levada.runs import Run, RunWriter, doctor, reseal
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
    with pytest.raises(UsageError, match=r"corrupt .*--reseal .* writes the manifest again from that"):
        Run(run)
    told = str(doctor(run))
    assert "one bit of it was wrong; with that put right its checksum agrees, and all is certain" in told
    assert "levada doctor" not in told, "the doctor does not send to itself"
    assert path.read_bytes() == bytes(data), "the doctor changes nothing"
    assert "the damaged one is kept in run.json.torn-1" in reseal(run)[0]
    assert Run(run).manifest == before
    assert (path.read_bytes(), (run / "run.json.torn-1").read_bytes()) == (good, bytes(data))
    assert reseal(run) == []


def test_of_a_torn_manifest_what_is_certain_is_told_from_what_is_not(run: Path) -> None:
    path = run / "run.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:4]))  # up to the name
    health = doctor(run)
    assert not health.healthy
    assert (health.manifest, health.types) == (None, {"losses": 1})
    for told in ("as: train 'named'", "certain: the kind, by its events; config, by config.toml", "lost: created"):
        assert told in str(health)
    assert main(["doctor", "--reseal", str(run)]) == 1, "the damaged one is still there, under another name"
    manifest = Run(run).manifest
    assert (manifest.kind, manifest.name, manifest.config) == ("train", "named", {"run": {"steps": 3}})
    assert manifest.uncertain == ("name", "created", "versions", "command")
    assert json.loads(path.read_text())["uncertain"] == list(manifest.uncertain)
    assert "written again. Not certain: name, created, versions, command." in render_report([run])
    RunWriter.open(run).close()


def test_a_kind_that_the_events_contradict_is_not_certain(run: Path) -> None:
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**values, "kind": "check", "name": "other"}))
    found = rebuilt(run)
    assert found is not None
    assert (found.manifest.kind, found.manifest.uncertain[:2]) == ("train", ("kind", "name"))


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
    assert "Update levada" in str(doctor(run))
    assert reseal(run) == []
    assert (run / "run.json").read_text() == newer


def test_a_writer_at_work_is_left_alone(run: Path) -> None:
    with RunWriter.open(run):
        (run / "run.json").write_text("{")
        with pytest.raises(UsageError, match="one writer at a time"):
            reseal(run)
