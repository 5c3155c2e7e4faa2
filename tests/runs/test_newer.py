"""A run of a newer levada: an older one says so, reads nothing of it wrongly, and changes nothing."""

from __future__ import annotations

import json
import warnings
from array import array
from collections.abc import Mapping
from pathlib import Path

import pytest

from levada._errors import UsageError
from levada.runs import Run, RunWriter, SignalWriter, doctor, packed, parquet, reseal, tail
from levada.runs.codes import encode
from levada.runs.manifest import MANIFEST
from levada.runs.segments import Cut
from levada.runs.tail import NewerError, Samples

SITES = [{"name": "a"}, {"name": "b"}]


def contents(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "writer.lock"
    }


def write_newer(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, *, sealed: bool) -> None:
    RunWriter.create(folder, kind="watch", name="newer").close()
    with monkeypatch.context() as patch:
        for module in (tail, packed, parquet):
            patch.setattr(module, "SCHEMA", 2)
        patch.setattr("levada.runs.signal_writer.has_parquet", lambda: suffix == "parquet")
        if not sealed:
            patch.setattr(SignalWriter, "_rotate", lambda self: None)
        with SignalWriter(folder, sites=SITES, signals=["x"]) as writer:
            for step in range(20):
                writer.append(step, 0.0, encode([1.0, 2.0]), {"loss": 1.0})
    assert (writer.problem, writer.dropped) == (None, 0)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "frames"])
def test_signals_of_a_newer_levada_are_not_read_and_stay_as_they_are(
    tmp_path: Path, suffix: str, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_newer(tmp_path, suffix, monkeypatch, sealed=sealed)
    before = contents(tmp_path)
    signals = Run(tmp_path).signals()
    assert (signals.steps, signals.read("x")) == ((), [])
    assert ["of schema 2" in damage.message for damage in signals.damage] == [True]
    health = doctor(tmp_path)
    assert (health.healthy, "update levada" in str(health)) == (False, True)
    (sentence,) = reseal(tmp_path)
    assert "stays as it is: it is of schema 2" in sentence
    assert contents(tmp_path) == before


def test_a_tail_of_a_newer_levada_is_left_by_who_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_newer(tmp_path, "parquet", monkeypatch, sealed=False)
    before = contents(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SignalWriter(tmp_path, sites=SITES, signals=["x"]) as writer:
            writer.append(20, 0.0, encode([4.0, 8.0]))
    assert (writer.problem, "of schema 2" in str(writer.left)) == (None, True)
    assert contents(tmp_path).items() >= before.items()
    assert Run(tmp_path).signals().read("x") == [[4.0, 8.0]]


def test_a_newer_tail_beside_the_file_that_it_was_sealed_to_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_newer(tmp_path, "parquet", monkeypatch, sealed=False)
    (tail_there,) = tmp_path.rglob("tail-*.log")
    newer = tail_there.read_bytes()
    tail_there.unlink()
    with SignalWriter(tmp_path, sites=SITES, signals=["x"]) as writer:
        writer.append(0, 0.0, encode([1.0, 2.0]))
    assert [path.name[:15] for path in tmp_path.rglob("samples-*")] == [f"samples-{tail_there.stem[5:]}-"]
    tail_there.write_bytes(newer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SignalWriter(tmp_path, sites=SITES, signals=["x"]).close()
    assert tail_there.read_bytes() == newer


def test_codes_of_a_newer_file_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packed, "SCHEMA", 2)
        samples = Samples(0, array("q", [7]))
        content = packed.pack_planes("full", samples, [array("h", [1])], ["x"], [{"name": "a"}])
    with pytest.raises(NewerError, match="of schema 2"):
        list(packed.unpack_planes(content, Cut.of("full", [7], 1), 0, range(1)))


def test_steps_are_not_taken_from_a_newer_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_newer(tmp_path, "frames", monkeypatch, sealed=True)
    next(tmp_path.rglob("samples-*")).unlink()
    before = contents(tmp_path)
    (sentence,) = reseal(tmp_path)
    assert "stays as it is: it is of schema 2" in sentence
    assert contents(tmp_path) == before


def test_a_run_whose_manifest_is_newer_is_not_sealed_again(tmp_path: Path) -> None:
    RunWriter.create(tmp_path, kind="watch", name="newer").close()
    with SignalWriter(tmp_path, sites=SITES, signals=["x"]) as writer:
        writer.append(0, 0.0, encode([1.0, 2.0]))
    next(tmp_path.rglob("full-*")).write_bytes(b"what a later levada knows")
    manifest = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"schema": 20}), encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"got schema 20\. Update levada"):
        reseal(tmp_path)
    assert contents(tmp_path) == before


def test_steps_of_a_run_without_sites_are_lost_with_their_file(tmp_path: Path) -> None:
    RunWriter.create(tmp_path, kind="watch", name="empty").close()
    with SignalWriter(tmp_path, sites=[], signals=["x"]) as writer:
        writer.append(0, 0.0, b"", {"loss": 1.0})
    assert Run(tmp_path).signals().scalars("loss") == [(0, 1.0)]
    next(tmp_path.rglob("samples-*.parquet")).unlink()
    assert reseal(tmp_path) == ["rank 0: segment 1 stays unreadable: its steps are lost"]
