"""Runs that are damaged, or made to do harm: told in a sentence, and never more than the run itself is lost."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from levada.runs import RunWriter
from levada.runs.frames import MAGIC, frame
from levada.runs.segments import sealed_name
from levada.runs.tail import TAIL_MAGIC, pack
from levada.web import folder
from levada.web.child import answer
from levada.web.folder import RefusedError, found_in, inspect

from .conftest import PNG, served, write_training, write_watched

RANK = Path("signals") / "rank-00000"
QUESTIONS: dict[str, dict[str, Any]] = {
    "row": {"id": "a" * 20},
    "summary": {"id": "a" * 20},
    "loss": {"asked": {}},
    "heat": {"asked": {"signal": "gradient_rms"}},
    "mixing": {"asked": {}},
    "gates": {"asked": {}},
    "memory": {},
    "drawings": {},
}


def asked(root: Path, name: str, run: str = "run") -> tuple[int, Any]:
    status, body = answer(root, json.dumps({"ask": name, "run": run, **QUESTIONS[name]}).encode())
    return status, json.loads(body)


def all_asked(root: Path) -> dict[str, int]:
    """Ask everything about a run: each answer is one, or a sentence of why there is none."""
    found = {}
    for name in QUESTIONS:
        status, body = asked(root, name)
        assert status in (200, 404, 409), body
        assert status == 200 or body["detail"].endswith((".", "`"))
        json.dumps(body, allow_nan=False)
        found[name] = status
    return found


@pytest.mark.parametrize("which", ["run.json", "events.log", "config.toml", "writer.lock", "watch/1/run.json"])
def test_a_link_out_of_a_run_is_not_followed(tmp_path: Path, which: str) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    write_training(root / "run")
    (root / "run" / "config.toml").write_text("[model]\ndepth = 3\n")
    (root / "run" / which).rename(secret)
    (root / "run" / which).symlink_to(secret)
    status, body = asked(root, "summary")
    assert status == 409
    assert f"'{which}', which is a link" in body["detail"]
    (root / "run" / which).unlink()
    secret.rename(root / "run" / which)
    assert asked(root, "summary")[0] == 200


def test_a_link_to_another_place_is_no_run_and_no_part_of_one(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write_watched(outside)
    write_watched(root / "run")
    (root / "linked").symlink_to(outside)
    assert found_in(root) == (["run"], 0)
    shutil.rmtree(root / "run" / "signals")
    (root / "run" / "signals").symlink_to(outside / "signals")
    assert "'signals', which is a link" in asked(root, "heat")[1]["detail"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_is_not_opened_which_would_wait_for_ever(tmp_path: Path) -> None:
    write_watched(tmp_path / "run")
    for name in ("writer.lock", "events.log"):
        (tmp_path / "run" / name).unlink()
        os.mkfifo(tmp_path / "run" / name)
        folder.stamp(tmp_path / "run")
        assert "no plain file" in asked(tmp_path, "summary")[1]["detail"]


def test_what_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_watched(tmp_path / "run")
    with (run / "events.log").open("r+b") as file:
        file.truncate(2**28 + 1)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("it is opened"))
    with pytest.raises(RefusedError, match="268,435,457 bytes; a page reads 268,435,456"):
        inspect(run)
    monkeypatch.undo()
    assert asked(tmp_path, "loss")[0] == 409


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("events.log", 2**28),
        ("run.json", 2**24),
        ("config.toml", 2**20),
        (f"{RANK}/sites-000.json", 2**28),
        ("watch/1/run.json", 2**24),
    ],
)
def test_each_file_has_its_limit(tmp_path: Path, name: str, most: int) -> None:
    path = write_watched(tmp_path / "run") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(most)
    inspect(tmp_path / "run")
    with path.open("ab") as file:
        file.truncate(most + 1)
    with pytest.raises(RefusedError, match=f"{name!r} has {most + 1:,} bytes; a page reads {most:,}"):
        inspect(tmp_path / "run")


def test_folders_in_a_run_have_a_depth(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run")
    before = inspect(run)
    for depth, more in ((5, 1), (6, 0)):
        place = run.joinpath("signals", *"abcdefg"[:depth])
        place.mkdir(parents=True)
        (place / "deep").touch()
        assert len(inspect(run)) - len(before) == more
        shutil.rmtree(run / "signals" / "a")


def test_of_many_runs_and_folders_so_many_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b", "c", "d/" * 9 + "deep", ".hidden", "a/signals/x"):
        (tmp_path / place).mkdir(parents=True)
        for name in ("run.json", "events.log"):
            (tmp_path / place / name).touch()
    assert found_in(tmp_path) == (["a", "b", "c"], 0)
    monkeypatch.setattr(folder, "MAX_RUNS", 2)
    assert found_in(tmp_path) == (["a", "b"], 1)
    monkeypatch.setattr(folder, "_MAX_FOLDERS", 1)
    assert found_in(tmp_path) == ([], 0)
    monkeypatch.setattr(folder, "_MAX_FILES", 3)
    with pytest.raises(RefusedError, match="more than 3 files"):
        inspect(write_watched(tmp_path / "run"))


def test_a_run_cut_at_every_place_of_every_file_is_told(tmp_path: Path) -> None:
    whole = write_watched(tmp_path / "whole")
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size]
    seen = set()
    for path in files:
        size = (whole / path).stat().st_size
        for cut in sorted({0, 1, size // 3, size // 2, size - 1}):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(whole, tmp_path / "run")
            (tmp_path / "run" / path).write_bytes((whole / path).read_bytes()[:cut])
            found = all_asked(tmp_path)
            seen.add((path.name.partition("-")[0], found["row"]))
    assert ("run.json", 409) in seen
    assert ("events.log", 200) in seen


def test_a_run_of_which_bits_are_flipped_is_told(tmp_path: Path) -> None:
    whole, chance = write_watched(tmp_path / "whole"), random.Random(0)
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size]
    statuses = set()
    for _ in range(60):
        path = chance.choice(files)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        content = bytearray((whole / path).read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (tmp_path / "run" / path).write_bytes(content)
        statuses |= set(all_asked(tmp_path).values())
    assert statuses == {200, 404, 409}


def event(**values: Any) -> bytes:
    return frame(json.dumps(values).encode())


STRANGE = {
    "losses": [{"type": "loss", "steps": [0, "a"], "values": [1, {}]}, {"type": "loss", "steps": [[]], "values": [1]}],
    "finding": [{"type": "finding", "finding": {"where": 3, "evidence": [1], "remedies": [{"name": 3}], "rule": None}}],
    "bare finding": [{"type": "finding", "severity": ["a"], "status": {}, "case": {"a": 1}, "step": "x"}],
    "judged": [{"type": "judged", "rules": 3, "unjudged": [1], "waiting": [[1]], "first": "a", "stages": [None]}],
    "end": [{"type": "end", "steps": "many", "left": {}}],
    "huge steps": [{"type": "loss", "steps": [10**400], "values": [10**400]}, {"type": "end", "steps": 10**400}],
    "overhead": [{"type": "overhead", "share": "a"}, {"type": "overhead", "share": [1]}],
    "report": [{"type": "report", "report": {"blocks": 3, "findings": {}, "summary": {"mixing": {"matrices": []}}}}],
    "report of texts": [{"type": "report", "report": {"verdict": [], "blocks": ["a"], "findings": ["a"], "notes": 3}}],
    "matrices": [
        {"type": "report", "report": {"summary": {"mixing": {"matrices": {"a": [["nan"]]}, "chains": [{"layers": 3}]}}}}
    ],
    "memory": [
        {
            "type": "report",
            "report": {
                "summary": {"memory_horizon": {"value": "a"}},
                "findings": [{"evidence": {"curves": {"steps_back": ["a"], "memory": "abc", "steps": [[]]}}}],
            },
        }
    ],
    "surrogate": [
        {"type": "note", "text": "\ud800"},
        {"type": "report", "report": {"model": "\ud800", "notes": ["\udfff"]}},
    ],
    "training": [{"type": "losses", "first": "a", "loss": 3}, {"type": "resumed", "step": []}],
    "study": [{"type": "study", "title": 3, "sources": 5}, {"type": "claim"}, {"type": "figure", "series": 3}],
    "pictures": [
        {"type": "figure", "kind": "picture", "images": [3, None, {}]},
        {"type": "figure", "kind": "picture", "images": 3},
    ],
}


@pytest.mark.parametrize("kind", ["watch", "check", "train", "study", "else"])
@pytest.mark.parametrize("strange", STRANGE)
def test_events_that_levada_does_not_write_are_answered(tmp_path: Path, kind: str, strange: str) -> None:
    RunWriter.create(tmp_path / "run", kind=kind, name="a\ud800").close()
    (tmp_path / "run" / "events.log").write_bytes(MAGIC + b"".join(event(**one) for one in STRANGE[strange]))
    all_asked(tmp_path)


def test_images_are_pngs_within_limits_and_whatever_they_are_the_run_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb, page = bytearray(PNG), b"<html><script>alert(1)</script>"
    bomb[16:24] = struct.pack(">II", 2**20, 2**20)
    with RunWriter.create(tmp_path / "run", kind="study", name="s") as writer:
        for id, png in {"page": page, "bomb": bomb, "first": PNG, "second": PNG}.items():
            images = [{"label": id, "alternative": id, "png": base64.b64encode(png).decode()}]
            writer.append("figure", kind="picture", id=id, title=id, images=images)
    monkeypatch.setattr("levada.web.drawings._MAX_LETTERS", len(base64.b64encode(PNG)))
    assert asked(tmp_path, "summary")[1]["has"] == ["drawings"]
    status, body = asked(tmp_path, "drawings")
    told = [(len(one["images"]), one["missing"]) for one in body["drawings"]]
    assert (status, [number for number, _ in told]) == (200, [0, 0, 1, 0])
    assert "is no PNG in base64" in told[0][1]
    assert "has 1,048,576 x 1,048,576 pixels" in told[1][1]
    assert told[2][1] == ""
    assert "too large for this page" in told[3][1]


def bomb(run: Path, size: int) -> None:
    """Put a small file with a right checksum, that says it is `size` bytes of JSON, in place of a run's samples."""
    stream = zlib.compressobj()
    part = b"[" + b"[]," * 2**20
    packed = stream.compress(b"[")
    packed += b"".join(stream.compress(part[1:]) for _ in range(size // len(part))) + stream.flush()
    content = TAIL_MAGIC + pack(b"Z" + struct.pack("<I", 0) + packed)
    assert len(content) < size / 100
    next((run / RANK).glob("samples-*")).unlink()
    (run / RANK / sealed_name("samples", 1, content, "frames")).write_bytes(content)


def test_a_decompression_bomb_is_not_expanded(tmp_path: Path) -> None:
    write_watched(tmp_path / "good")
    bomb(write_watched(tmp_path / "run"), 2**28)
    with served(tmp_path) as client:
        assert client.json(client.run("run", "/heat?signal=gradient_rms"))["steps"] == []
        assert any("samples-000001" in one for one in client.json(client.run("run"))["damage"])
        assert client.json(client.run("good"))["samples"] == 80


def nested(run: Path, values: int) -> None:
    """Give a run events that are small on the disk and large in memory."""
    with (run / "events.log").open("ab") as file:
        for _ in range(values // 2**22):
            file.write(frame(b'{"type":"x","y":[' + b"[]," * (2**22 - 1) + b"[]]}"))


@pytest.mark.skipif(os.name != "posix", reason="the limit of memory is POSIX's")
def test_a_run_that_takes_too_much_memory_ends_in_a_sentence_and_not_the_server(tmp_path: Path) -> None:
    write_watched(tmp_path / "good")
    nested(write_watched(tmp_path / "large"), 2**24)  # 50 MB of log, over a gigabyte of lists
    with served(tmp_path) as client:
        told = client.json(client.run("large"), 409)["detail"]
        assert "takes more memory than a page may" in told or "has died of it" in told
        assert client.json(client.run("good"))["samples"] == 80
        rows = {row["name"]: row for row in client.runs()["runs"]}
        assert rows["large"]["problem"]


def test_a_run_that_takes_too_long_ends_in_a_sentence(tmp_path: Path) -> None:
    write_watched(tmp_path / "run")
    with served(tmp_path, seconds=0.001) as client:
        assert "takes longer than" in client.json(client.run("run"), 409)["detail"]


def test_a_run_that_goes_away_is_told(tmp_path: Path) -> None:
    write_watched(tmp_path / "run")
    with served(tmp_path, every=30.0) as client:
        assert client.json(client.run("run"))["samples"] == 80
        shutil.rmtree(tmp_path / "run")
        assert client.json(client.run("run"), 409)["detail"].startswith("The run cannot be read")


def test_damage_is_part_of_the_summary(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run")
    path = next((run / RANK).glob("full-*"))
    path.write_bytes(path.read_bytes()[:-1])
    held = asked(tmp_path, "heat")[1]
    assert held["resolution"] == 1
    assert asked(tmp_path, "summary")[1]["damage"][0].startswith("Signals: full-000001")
    with (run / "events.log").open("ab") as file:
        file.write(b"torn by a flipped bit, and not by a crash")
    told = asked(tmp_path, "summary")[1]["damage"]
    assert any("event log" in one for one in told)


def test_the_list_goes_on_without_what_cannot_be_read(tmp_path: Path) -> None:
    write_watched(tmp_path / "good")
    (write_watched(tmp_path / "bad") / "run.json").write_text("{}")
    with served(tmp_path) as client:
        rows = {row["name"]: row for row in client.runs()["runs"]}
        assert rows["good"]["verdict"] == "warn"
        assert "the manifest is damaged" in rows["bad"]["problem"]


def test_questions_wait_in_a_line_that_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("levada.web.reader._WAITING", 0)
    write_watched(tmp_path / "run")
    with served(tmp_path) as client:
        status, headers, body = client.get(client.run("run"))
        assert (status, headers["retry-after"]) == (503, "5"), body
