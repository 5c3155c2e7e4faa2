"""What was kept and is gone is told by the doctor and on the page, and what was let go of in its order is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from levada.cli import main
from levada.probe.trace import Site
from levada.runs import Run, doctor
from levada.runs.absent import absent
from levada.runs.standing import Standing
from levada.watching.measure.sample import WATCHED, Sample
from levada.watching.record.recording import Recording
from levada.watching.verdict.bundle import Bundle, write_bundle

SITES = tuple(Site(f"layers.{i}", i, "Linear", (4, 8), (f"layers.{i}.weight",)) for i in range(2))
KEPT = "step-000040-loss_spike"


def write(folder: Path, steps: range, **options: Any) -> None:
    watch = SimpleNamespace(sites=SITES, findings=[], overhead=0.0, standing=Standing(), steps=steps.start)
    recording = Recording(folder, watch, **options)
    for step in steps:
        values = {name: torch.full((2,), 2.0 ** (step % 7), dtype=torch.float64) for name in WATCHED}
        recording.sampled(Sample(step, 1e9 + step, values, {}, losses=((step, 0.5),)))
        if step % 50 == 0:
            recording.flush()
    if steps.start == 0:
        write_bundle(folder, Bundle(40, "loss_spike", "why", values={"args": (torch.ones(2),)}))
    recording.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    write(folder, range(600))  # segments of 256, 256 and 88 samples
    assert len(list((folder / "signals" / "rank-00000").glob("full-*"))) == 3
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("signals/rank-00000/full-*", ["full-000003 is gone, steps 512 to 599", "full-000001 is gone, steps 0 to 255"]),
        ("signals/rank-00000/full-000002*", ["full-000002 is gone, steps 256 to 511"]),
        ("signals/rank-00000/by16-000001*", ["by16-000001 is gone, steps 0 to 255"]),
        ("signals/rank-00000/by256-000003*", ["by256-000003 is gone, steps 512 to 599"]),
        (
            "signals/rank-00000/*-000002-*",
            ["256 samples are gone: 600 were kept, and 344 are there, after step 255 and"],
        ),
        ("signals/rank-00000/*-000003-*", ["88 samples are gone: 600 were kept, and 512 are there, after step 511"]),
        ("signals", ["signals/rank-00000 is gone: 600 samples were kept"]),
        (f"bundles/{KEPT}", [f"bundles/{KEPT} was kept, and is no longer there"]),
    ],
)
def test_what_was_removed_is_told(run: Path, pattern: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(run).healthy
    for path in list(run.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    health = doctor(run)
    assert not health.healthy
    assert main(["doctor", str(run)]) == 1
    out = capsys.readouterr().out
    for words in told:
        assert f"damage: {words}" in out
    assert main(["report", str(run), "-o", str(run.parent / "page.html")]) == 1
    page = (run.parent / "page.html").read_text()
    for words in told:
        assert words.split(",")[0] in page


def test_what_was_let_go_of_in_its_order_is_not_missing(tmp_path: Path) -> None:
    write(tmp_path / "few", range(1200), keep=500)
    folder = tmp_path / "few" / "signals" / "rank-00000"
    assert [path.name[:11] for path in sorted(folder.glob("full-*"))] == ["full-000003", "full-000004", "full-000005"]
    assert doctor(tmp_path / "few").healthy
    next(folder.glob("full-000003*")).unlink()
    assert [str(one) for one in doctor(tmp_path / "few").gone] == ["full-000003: all series, steps 512 to 767"]


def test_a_run_that_went_on_from_an_earlier_step_counts_all_that_was_written(tmp_path: Path) -> None:
    write(tmp_path / "run", range(100))
    write(tmp_path / "run", range(60, 90), resume=True)
    events = list(Run(tmp_path / "run").events())
    assert sum(event["samples"] for event in events if event["type"] == "end") == 130
    assert len(Run(tmp_path / "run").signals().steps) == 90
    assert doctor(tmp_path / "run").healthy
    # A record without the count, as of a process that was killed, or of an earlier levada.
    assert not absent(tmp_path / "run", [event for event in events if event["type"] != "end"])
