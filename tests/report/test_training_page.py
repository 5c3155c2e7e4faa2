"""The page of a training: how it stands, its loss with gaps, its configuration, what was found while it was watched."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from tests.report.test_page import HOSTILE, Page

from levada._errors import MeasurementError
from levada.report import render_report
from levada.report.curve import gaps, loss_series
from levada.report.training import training_view
from levada.runs import Run, RunWriter
from levada.runs.lock import NAME, is_held
from levada.training import resolve, train
from levada.training.engine import WholeNetwork
from levada.training.record import Record

SMALL = {"model": {"depth": 2, "dim": 8}, "data": {"batch_size": 16, "evaluated": 32}}


def small(folder: Path, *changes: str) -> Any:
    return resolve(SMALL, [f"run.folder={folder}", "run.steps=6", "watch.enabled=false", *changes])


def view(folder: Path) -> dict[str, Any]:
    run = Run(folder)
    return training_view(run, run.manifest.name, list(run.events()))


def test_a_training_that_ended_shows_both_losses_and_its_configuration(tmp_path: Path) -> None:
    train(small(tmp_path / "mine", "run.evaluate_every=2", "optimizer.lr=0.0123"))
    seen = view(tmp_path / "mine")
    assert (seen["state"], seen["headline"]) == ("ended", "Trained for 6 steps")
    text = Page(page := render_report([tmp_path / "mine"])).text
    for told in (
        "Trained for 6 steps.",
        "training",
        "held out",
        "lr = 0.0123",
        'connection = "Residual"',
        "It was not",
    ):
        assert told in text
    assert "study" not in text.lower()
    assert (
        len(re.findall(r'<path class="line measured c[01] thick" d="[^"]*"><title>', page)) == 4
    )  # two, wide and narrow


def test_a_page_names_what_it_holds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with RunWriter.create(tmp_path / name, kind="train", name=name) as writer:
            writer.append("losses", first=0, loss=[2.0, 1.0])
    assert "<title>2 trainings · levada</title>" in render_report([tmp_path / "a", tmp_path / "b"])


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def fail(*_: Any) -> None:
    raise RuntimeError(f"no {HOSTILE}")


@pytest.mark.parametrize(
    ("raises", "error", "state", "why"),
    [
        (interrupt, KeyboardInterrupt, "stopped", "It was interrupted (Ctrl-C)."),
        (fail, RuntimeError, "failed", f"RuntimeError: no {HOSTILE}"),
    ],
)
def test_what_ended_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: Any, error: type[BaseException], state: str, why: str
) -> None:
    train(small(tmp_path / "mine", "run.steps=2"))
    monkeypatch.setattr(WholeNetwork, "step", raises)
    with pytest.raises(error):
        train(small(tmp_path / "mine"), resume=True)
    seen = view(tmp_path / "mine")
    assert (seen["state"], seen["why"], seen["headline"]) == (state, why, f"{state.capitalize()} after 2 of 6 steps")
    assert "newest complete checkpoint is that after step 2: `levada train" in seen["notes"][0]
    assert "<script" not in render_report([tmp_path / "mine"])
    monkeypatch.undo()
    train(small(tmp_path / "mine"), resume=True)
    assert view(tmp_path / "mine")["state"] == "ended"


def test_a_loss_that_is_no_number_stops_it_and_its_step_is_not_done(tmp_path: Path) -> None:
    changes = ("optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.clip=0")
    with pytest.raises(MeasurementError) as raised:
        train(small(tmp_path / "mine", *changes))
    seen = view(tmp_path / "mine")
    step = int(str(raised.value).split("at step ")[1].split(";")[0])
    assert (seen["state"], seen["headline"]) == ("stopped", f"Stopped after {step} of 6 steps")
    assert f"train: {seen['why']}" == str(raised.value)
    assert [event["type"] for event in Run(tmp_path / "mine").events()][-1] == "stopped"


def test_while_it_is_written_it_runs_and_when_its_process_is_gone_it_was_killed(tmp_path: Path) -> None:
    config = small(tmp_path / "mine")
    record = Record()
    record.open(config, resume=False)
    record.step(0, 2.0, 1.0, 0.1)
    record.flush()
    assert (view(tmp_path / "mine")["state"], view(tmp_path / "mine")["headline"]) == (
        "running",
        "Training: 1 of 6 steps done",
    )
    record.close()
    seen = view(tmp_path / "mine")
    assert (seen["state"], seen["why"][:34]) == ("stopped", "Its process ended without a word: ")
    assert "begins again" in seen["notes"][0]
    (tmp_path / "mine" / NAME).write_text("17 on another-machine\n")
    assert view(tmp_path / "mine")["state"] == "not ended"


def test_asking_whether_a_run_is_held_neither_keeps_a_writer_out_nor_needs_to_write(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "mine", kind="train", name="mine"):
        assert is_held(tmp_path / "mine")
    (tmp_path / "mine" / NAME).chmod(0o444)
    assert is_held(tmp_path / "mine") is False
    (tmp_path / "mine" / NAME).chmod(0o644)
    for _ in range(3000):  # more than a process may open files, were they left open
        assert is_held(tmp_path / "mine") is False
    RunWriter.open(tmp_path / "mine").close()


def test_what_was_found_is_told_with_the_steps_of_the_training(tmp_path: Path) -> None:
    train(small(tmp_path / "mine", "watch.enabled=true", "run.steps=2"))
    train(small(tmp_path / "mine", "watch.enabled=true"), resume=True)
    told = list(Run(tmp_path / "mine").events("watched"))
    assert [(event["path"], event["first"]) for event in told] == [("watch/1", 0), ("watch/2", 2)]
    assert "It was watched, and nothing was found." in Page(render_report([tmp_path / "mine"])).text
    spike = {"rule": "loss_spike", "severity": "warn", "claim": f"The loss rose {HOSTILE}.", "where": {}}
    with RunWriter.open(tmp_path / "mine" / "watch" / "2") as writer:
        writer.append("finding", step=3, **spike, status="fired")
    (one,) = view(tmp_path / "mine")["told"]
    assert (one["when"], one["where"], one["kind"]) == ("told at step 5", "watch/2", "warning")
    text = Page(render_report([tmp_path / "mine"])).text
    assert f"The loss rose {HOSTILE}." in text
    with RunWriter.open(tmp_path / "mine" / "watch" / "2") as writer:
        writer.append("finding", step=4, **spike, status="clear")
    (one,) = view(tmp_path / "mine")["told"]
    assert (one["when"], one["kind"]) == ("told at step 5, over at step 6", "warning, over")


def test_a_loss_that_is_no_number_keeps_its_place(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "mine", kind="train", name="mine") as writer:
        writer.append("losses", first=0, loss=[2.0, math.nan, 1.5])
        writer.append("end", state="ended")
    assert render_report([tmp_path / "mine"]).count('<path class="edge c0"') == 2


def test_a_curve_is_broken_where_steps_are_missing(tmp_path: Path) -> None:
    losses = [(step, 1.0 + step / 100) for step in [*range(40), *range(80, 100)]]
    assert gaps(losses) == [(40, 79)]
    series = loss_series(losses)
    assert [(x, y) for x, y in zip(series["x"], series["y"], strict=True) if y is None] == [(40, None)]
    many = [(step, 1.0 + step / 1e5) for step in [*range(10_000), *range(10_001, 30_000)]]
    assert loss_series(many)["y"].count(None) == 1
    with RunWriter.create(tmp_path / "mine", kind="train", name="mine") as writer:
        writer.append("losses", first=0, loss=[y for _, y in losses[:40]])
        writer.append("losses", first=80, loss=[y for _, y in losses[40:]])
    page = render_report([tmp_path / "mine"])
    assert len(re.findall(r'<path class="line measured c0 thick" d="[^"]*"><title>', page)) == 4  # two, wide and narrow
    assert "The line is broken where losses are missing: steps 40 to 79." in page


def test_trainings_of_before_that_said_no_end_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Record, "end", lambda *_: None)
    train(small(tmp_path / "mine"))
    assert view(tmp_path / "mine")["state"] == "ended"
