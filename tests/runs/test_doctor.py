"""What the doctor looks at, and what is no fault: a writer at work, and one that was killed when nothing was lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.faults import small

from levada.runs import Run, RunWriter, SignalWriter, doctor, reseal
from levada.runs.segments import Place, places
from levada.runs.tail import read_tail
from levada.watching.verdict.bundle import Bundle, write_bundle


@pytest.fixture
def run(tmp_path: Path) -> Path:
    small.write(tmp_path / "run", "parquet")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["flipped", "cut", "no tensors", "no table"])
def test_a_bundle_that_cannot_be_replayed_is_told(run: Path, kind: str) -> None:
    folders = [
        write_bundle(run, Bundle(step, "loss_spike", "why", values={"args": (torch.ones(9),)})) for step in (3, 7)
    ]
    for name in (".step-000009-x.77", "notes"):  # a draft, and something of the user's
        (run / "bundles" / name).mkdir()
    health = doctor(run)
    assert health.healthy
    assert "bundles: 2, every checksum right" in str(health)
    path = folders[1] / ("bundle.json" if kind == "no table" else "tensors.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if kind.startswith("no "):
        path.unlink()
    else:
        path.write_bytes(content if kind == "flipped" else content[:40])
    health = doctor(run)
    assert not health.healthy
    (damage,) = health.bundle_damage
    assert damage.message.startswith("bundles/step-000007-loss_spike cannot be replayed")
    assert damage.message in str(health)
    left = "torch.load(" if kind == "no table" else "comes to step 7 again"
    assert left in damage.message, "what can be used all the same"
    if kind == "no table":
        (folders[1] / "tensors.pt").write_bytes(b"nothing")
        (damage,) = doctor(run).bundle_damage
        assert "Nothing of it can be used" in damage.message


def test_a_table_whose_writer_was_killed_between_its_two_files_is_no_fault(run: Path) -> None:
    folder = run / "signals" / "rank-00000"
    (folder / "sites-000.json").unlink()
    assert doctor(run).healthy
    assert small.judge(run) == "harmless"
    SignalWriter(run, sites=small.SITES, signals=small.SIGNALS).close()
    assert sorted(path.name for path in folder.glob("sites-*")) == ["sites-000.copy", "sites-000.json"]
    (folder / "sites-000.copy").write_bytes(b"")
    assert not doctor(run).healthy
    assert any("sites-000.copy is written again" in sentence for sentence in reseal(run))


@pytest.mark.parametrize("level", ["samples", "tail"])
def test_what_a_writer_moves_at_this_moment_is_looked_for_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """A look into the folder that came too early, or too late, is followed by another, after a moment."""
    folder = run / "signals" / "rank-00000"
    slept: list[float] = []

    def early(where: Path) -> list[Place]:
        found = places(where)
        if len(slept) < 3 and level == "samples":
            return [place for place in found if place.level != "samples"]
        if len(slept) < 3:
            return [*found, Place(folder / "tail-000009.log", "tail", 9, -1)]
        return found

    monkeypatch.setattr(time, "sleep", slept.append)
    for name in ("health", "signals"):
        slept.clear()
        monkeypatch.setattr(f"levada.runs.{name}.places", early)
        found: Any = doctor(run) if name == "health" else Run(run).signals()
        assert len(slept) == 3
        assert sum(slept) > 0.05
        assert found.healthy if name == "health" else len(found.steps) == 27 and not found.damage


def test_a_tail_that_is_sealed_once_it_was_read_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunWriter.create(tmp_path, kind="watch", name="mine").close()
    writer = SignalWriter(tmp_path, sites=[{"name": "a"}], signals=["x"])
    writer.append(0, 0.0, bytes(2))
    assert writer.flush()

    def seal(path: Path, widths: Any) -> Any:
        found = read_tail(path, widths)
        writer.close()
        return found

    monkeypatch.setattr("levada.runs.health.read_tail", seal)
    health = doctor(tmp_path)
    assert (health.healthy, health.signals[0].samples) == (True, 1)


@pytest.mark.parametrize("end", [True, False])
def test_an_end_behind_a_damage_is_told_as_one(tmp_path: Path, end: bool) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="run") as writer:
        for step in range(9):
            writer.append("loss", steps=[step], values=[1.0])
        if end:
            writer.append("end")
    assert ("not ended" in str(doctor(tmp_path))) is not end
    log = tmp_path / "events.log"
    content = bytearray(log.read_bytes())
    content[40] ^= 1
    log.write_bytes(content)
    state = "ended" if end else "not ended"
    told = f"{state}: last recorded step 8, as the good frames behind the damage say; --reseal makes them readable"
    assert doctor(tmp_path).open_end == told
    reseal(tmp_path)
    assert doctor(tmp_path).open_end == ("" if end else "not ended: last recorded step 8")
