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
from levada.report.curve import gaps, loss_series, scale_of
from levada.report.training import MAX_WATCHED, training_view
from levada.report.watch import MAX_FINDINGS, watch_view
from levada.runs import Run, RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.runs.lock import NAME, is_held
from levada.runs.processes import MAX_RANKS
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
    assert seen["why"] == str(raised.value).replace("train: the", "The")
    assert [event["type"] for event in Run(tmp_path / "mine").events()][-1] == "stopped"
    caption = f"The loss of {step} step{'s' * (step > 1)}, and that of step {step}, whose update was not made"
    assert seen["figures"][0]["caption"].startswith(caption)


def spoilt(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, *changes: str) -> dict[str, Any]:
    """Train until the loss of a step is NaN; return what the page shows."""
    whole = WholeNetwork.step

    def step(self: WholeNetwork, *given: Any) -> Any:
        seen["made"] += 1
        return whole(self, *given) * (math.nan if seen["made"] > at else 1.0)

    seen = {"made": 0}
    with monkeypatch.context() as patch:
        patch.setattr(WholeNetwork, "step", step)
        with pytest.raises(MeasurementError):
            train(small(folder, *changes))
    return view(folder)


def test_where_it_stopped_by_itself_it_is_said_that_it_stops_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note,) = spoilt(tmp_path / "alone", monkeypatch, 2)["notes"]
    assert "holds the weights from before step 2: `levada train" in note
    assert note.endswith("takes that step again, with the same weights and the same batch, and stops there again.")
    first, second = spoilt(tmp_path / "earlier", monkeypatch, 3, "checkpoint.every=2")["notes"]
    assert "from before step 3" in first
    assert second.startswith("The checkpoint after step 2 is from before that. The same steps follow from it")
    (note,) = spoilt(tmp_path / "at-once", monkeypatch, 0)["notes"]
    assert note == "It holds no complete checkpoint: continued, it begins again, and comes to the same step 0."


def test_what_it_says_of_its_end_is_a_sentence_with_code_as_code(tmp_path: Path) -> None:
    changes = ("optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.clip=0", "watch.enabled=true")
    with pytest.raises(MeasurementError):
        train(small(tmp_path / "mine", *changes))
    for folder in (tmp_path / "mine", tmp_path / "mine" / "watch" / "1"):
        page = render_report([folder])
        text = Page(page).text
        assert "The loss is NaN at step 1; the run is kept" in text
        assert "`" not in text
        assert "MeasurementError" not in text
        assert ".." not in text.replace("...", "")
        assert f"<code>levada replay {tmp_path}/mine/watch/1/bundles/step-000001-numerical_overflow --model" in page
        assert "The loss of 1 step, and that of step 1, whose update was not made" in text
    assert "Stopped after 1 of 6 steps" in Page(render_report([tmp_path / "mine"])).text
    watched = Page(render_report([tmp_path / "mine" / "watch" / "1"])).text
    assert "2 samples kept, the last of step 1, whose update was not made" in watched
    assert "The signal becomes NaN or Inf at stack.layers.0" in watched


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
    assert [step for step, _ in Run(tmp_path / "mine" / "watch" / "2").losses()] == [2, 3, 4, 5]
    spike = {"rule": "loss_spike", "severity": "warn", "claim": f"The loss rose {HOSTILE}.", "where": {}}
    with RunWriter.open(tmp_path / "mine" / "watch" / "2") as writer:
        writer.append("finding", step=4, **spike, status="fired")
    (one,) = view(tmp_path / "mine")["told"]
    assert (one["when"], one["where"], one["kind"]) == ("told at step 4", "watch/2", "warning")
    text = Page(render_report([tmp_path / "mine"])).text
    assert f"The loss rose {HOSTILE}." in text
    with RunWriter.open(tmp_path / "mine" / "watch" / "2") as writer:
        writer.append("finding", step=5, **spike, status="clear")
    (one,) = view(tmp_path / "mine")["told"]
    assert (one["when"], one["kind"]) == ("told at step 4, over at step 5", "warning, over")


def test_a_claim_of_a_continued_training_names_the_step_at_which_it_was_told(tmp_path: Path) -> None:
    changes = ("optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.clip=0", "watch.enabled=true")
    train(small(tmp_path / "mine", *changes, "run.steps=1"))
    with pytest.raises(MeasurementError):
        train(small(tmp_path / "mine", *changes), resume=True)
    one = view(tmp_path / "mine")["told"][0]
    assert (one["where"], one["when"]) == ("watch/2", "told at step 1")
    assert "The loss of step 1 is the first that is not finite" in one["claim"]


@pytest.mark.parametrize(
    ("known", "when"),
    [
        ({"first": 1000}, "told at step 1,040, over at step 1,045, its text counts from step 1,000 on"),
        ({"first": 1000, "numbered_from": 1000}, "told at step 40, over at step 45"),
        ({}, "told at step 40, over at step 45, as its record counts"),
    ],
)
def test_records_of_before_that_count_from_a_continuation_are_marked(
    tmp_path: Path, known: dict[str, int], when: str
) -> None:
    with RunWriter.create(tmp_path / "mine", kind="train", name="mine") as writer:
        writer.append("watched", path="watch/2", **known)
    spike = {"rule": "loss_spike", "severity": "warn", "claim": "The loss of step 40 rose.", "where": {}}
    with RunWriter.create(tmp_path / "mine" / "watch" / "2", kind="watch", name="2") as writer:
        writer.append("finding", step=40, **spike, status="fired")
        writer.append("finding", step=45, **spike, status="clear")
    assert view(tmp_path / "mine")["told"][0]["when"] == when


SPIKE = {"rule": "loss_spike", "severity": "warn", "claim": "The loss rose.", "where": {}}
FIRED = ("finding", {**SPIKE, "status": "fired", "step": 1})
CLEAR = ("finding", {**SPIKE, "status": "clear", "step": 2})
JUDGED = ("judged", {"rules": ["loss_spike"], "unjudged": {}, "waiting": []})
WAITING = ("judged", {"rules": [], "unjudged": {"loss_spike": "no loss was seen"}, "waiting": ["loss_spike"]})


def watched(folder: Path, number: int, *events: tuple[str, dict[str, Any]]) -> None:
    with RunWriter.create(folder / "watch" / f"{number}", kind="watch", name=f"{number}") as writer:
        for type, payload in events:
            writer.append(type, **payload)


@pytest.mark.parametrize(
    ("events", "verdict", "told"),
    [
        ([JUDGED], "healthy", "Nothing was found. 1 of 1 rules judged it."),
        ([FIRED, CLEAR, JUDGED], "healthy", "What was found is over. 1 of 1 rules judged it."),
        ([FIRED, JUDGED], "warn", "1 of 1 rules judged it."),
        ([WAITING], "unknown", "0 of 1 rules judged it. Not judged: loss_spike: no loss was seen."),
        ([], "unknown", "Which rules judged it is not known."),
    ],
)
def test_nothing_was_found_is_said_only_where_it_was_judged(
    tmp_path: Path, events: Any, verdict: str, told: str
) -> None:
    RunWriter.create(tmp_path / "mine", kind="train", name="mine").close()
    watched(tmp_path / "mine", 1, *events)
    (row,) = view(tmp_path / "mine")["watched"]
    steps = [payload["step"] for _, payload in events if "step" in payload]
    recorded = f"last recorded step {max(steps)}" if steps else "no step was recorded"
    assert (row["where"], row["verdict"], row["told"]) == ("watch/1", verdict, f"{told} Not ended: {recorded}.")
    watched(tmp_path / "mine", 2, *events, ("end", {"steps": 0}))
    assert view(tmp_path / "mine")["watched"][1]["told"] == told
    text = Page(render_report([tmp_path / "mine"])).text
    assert told in text
    assert ("othing was found" in text) is told.startswith("Nothing")


def test_what_cannot_be_read_of_watched_runs_is_told_in_their_place(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    with RunWriter.create(mine, kind="train", name="mine") as writer:
        writer.append("watched", path="watch/1", first=0)
        for path in ("watch/../..", f"watch/{'9' * 5000}", "/1"):
            writer.append("watched", path=path, first=0)
    for number in (2, 3, 4, 5):
        watched(mine, number, JUDGED, *([("end", {"steps": 0})] if number > 3 else ()))
    (mine / "watch" / "2" / "run.json").write_text("{")
    for number in (3, 4):
        with (mine / "watch" / f"{number}" / "events.log").open("ab") as log:
            log.write(b"torn")
    flipped = mine / "watch" / "5" / "events.log"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    gone, corrupt, killed, torn, changed = view(mine)["watched"]
    assert (gone["where"], gone["verdict"], gone["told"]) == (
        "watch/1",
        "unknown",
        "Its record is not there.",
    )
    assert (corrupt["verdict"], corrupt["told"][:19]) == ("unknown", "It cannot be read: ")
    seen = "Nothing was found. 1 of 1 rules judged it."
    assert killed["told"] == f"{seen} Not ended: no step was recorded.", "a process that is killed leaves half a frame"
    assert torn["told"] == changed["told"] == f"{seen} The end of its record cannot be read."
    assert "and nothing was found" not in render_report([mine])


def test_what_was_watched_before_a_continuation_is_folded_and_the_newest_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunWriter.create(folder, kind="train", name="run") as writer:
        for number in (1, 2, 10):
            watched(folder, number)
            writer.append("watched", path=f"watch/{number}", first=number)
    other = tmp_path / "watch" / "1"  # of no training on the page
    RunWriter.create(other, kind="watch", name="1").close()
    page = render_report([folder, *(folder / f"watch/{number}" for number in (1, 2, 10)), other])
    folded = re.findall(r'<details class="earlier"><summary><code>([^<]*)</code>, before the training', page)
    assert folded == ["run/watch/1", "run/watch/2"]
    assert page.count("<details") == page.count("</details>")
    assert "earlier" not in re.sub(r"(?s)<style>.*?</style>", "", render_report([folder / "watch/1"]))


def test_findings_and_watched_runs_are_listed_up_to_a_bound_and_the_rest_is_counted(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    RunWriter.create(mine, kind="train", name="mine").close()
    watched(mine, 1, *[FIRED, CLEAR] * 100, FIRED, JUDGED)
    for number in range(2, MAX_WATCHED + 2):
        watched(mine, number, WAITING)
    watched(mine, MAX_WATCHED + 2, FIRED, WAITING)
    seen = view(mine)
    assert len(seen["told"]) == MAX_FINDINGS
    assert (seen["told"][0]["kind"], seen["told"][1]["kind"]) == ("warning", "warning, over")
    assert f"{102 - MAX_FINDINGS} more findings are over." in seen["notes"]
    assert len(seen["watched"]) == MAX_WATCHED + 1
    before, first, *_, last = seen["watched"]
    assert (before["where"], before["verdict"], before["told"]) == ("2 before", "warn", "1 warning, 1 not judged.")
    assert (first["where"], last["where"]) == ("watch/3", f"watch/{MAX_WATCHED + 2}")
    many = [
        ("finding", {**SPIKE, "rule": "dead_units", "where": {"first": f"{i}"}, "status": "fired", "step": 1})
        for i in range(40)
    ]
    watched(mine, 99, *many)
    assert f"{40 - MAX_FINDINGS} more findings stand: see its watched runs." in view(mine)["notes"]
    assert render_report([mine]).count('<article class="finding') == MAX_FINDINGS


def test_a_training_that_ended_and_is_being_continued_runs(tmp_path: Path) -> None:
    train(small(tmp_path / "mine"))
    record = Record()
    assert record.open(small(tmp_path / "mine", "run.steps=9"), resume=True)
    seen = view(tmp_path / "mine")
    assert (seen["state"], seen["headline"]) == ("running", "Training: 6 of 9 steps done")
    record.close()
    assert view(tmp_path / "mine")["state"] == "ended"


def test_a_loss_that_is_no_number_keeps_its_place(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "mine", kind="train", name="mine") as writer:
        writer.append("losses", first=0, loss=[2.0, math.nan, 1.5])
        writer.append("end", state="ended")
    assert render_report([tmp_path / "mine"]).count('<path class="edge c0"') == 2


def test_of_losses_that_are_no_numbers_all_are_counted_however_few_are_drawn(tmp_path: Path) -> None:
    spoilt = {1500: math.inf, 1501: -math.inf, **dict.fromkeys(range(1502, 2000), math.nan)}
    losses = [(step, spoilt.get(step, 2.0)) for step in range(2000)]
    series = loss_series(losses, shift=1)
    drawn = dict(zip(series["x"], series["y"], strict=True))
    assert len(drawn) < 2000
    assert (drawn[1501], drawn[1502]) == (math.inf, -math.inf)
    assert series["edges"] == {"above": (1, 1501, 1501), "below": (1, 1502, 1502), "nan": (498, 1503, 2000)}
    with RunWriter.create(tmp_path / "mine", kind="train", name="mine") as writer:
        writer.append("losses", first=0, loss=[loss for _, loss in losses])
    assert "× 498 values are NaN, drawn above the axis." in render_report([tmp_path / "mine"])


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


def test_a_finding_at_no_step_that_there_is_is_told_without_one(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "mine", kind="train", name="mine").close()
    watched(tmp_path / "mine", 1, ("finding", {**SPIKE, "status": "fired", "step": "inf"}))
    assert view(tmp_path / "mine")["told"][0]["when"] == ""


def test_what_stood_when_a_training_was_continued_is_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    with RunWriter.create(mine, kind="train", name="mine") as writer:
        writer.append("watched", path="watch/1", first=0, numbered_from=0)
    watched(mine, 1, FIRED, JUDGED)
    assert [(one["kind"], one["when"]) for one in view(mine)["told"]] == [("warning", "told at step 1")]
    for seen_on in (False, True):  # also where nobody watches the continuation
        with RunWriter.open(mine) as writer:
            writer.append("resumed", step=300, processes=1)
        if seen_on:
            with RunWriter.open(mine) as writer:
                writer.append("watched", path="watch/2", first=300, numbered_from=300)
            watched(mine, 2, ("judged", {**JUDGED[1], "first": 300}))
        seen = view(mine)
        assert [row["verdict"] for row in seen["watched"]] == ["warn", *(["healthy"] if seen_on else [])]
        (one,) = seen["told"]
        assert (one["kind"], one["when"]) == ("warning, over", "told at step 1, over at step 300")
        assert one["claim"] == "The loss rose. Superseded from step 300 on, where another process went on with the run."


def test_a_page_opens_the_signals_of_a_sample_of_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    RunWriter.create(mine, kind="train", name="mine").close()
    watched(mine, 1, JUDGED)
    sites = [{"name": "0", "order": 0}]
    for rank in range(200):
        SignalWriter(mine / "watch" / "1", rank=rank, sites=sites, signals=("gradient_rms",)).close()
    opened, signals = [], Run.signals
    monkeypatch.setattr(Run, "signals", lambda run, rank=0: opened.append(rank) or signals(run, rank))
    for show in (lambda: view(mine), lambda: watch_view(Run(mine / "watch" / "1"), "1", [])):
        opened.clear()
        show()
        assert len(opened) == len(set(opened)) == MAX_RANKS
        assert opened[0] == 0


def test_of_a_continued_training_it_is_told_where_its_own_samples_end(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "mine", kind="train", name="mine").close()
    steps = list(range(10_000, 10_101))
    judged = ("judged", {**JUDGED[1], "first": 10_000})
    watched(tmp_path / "mine", 2, ("loss", {"steps": steps, "values": [1.0] * len(steps)}), judged)
    for step, end in ((10_000, True), (10_095, False)):
        sites = [{"name": "0", "order": 0}]
        with SignalWriter(tmp_path / "mine" / "watch" / "2", sites=sites, signals=("gradient_rms",)) as signals:
            signals.append(step, 1.0, encode([1.0]), {})
        (row,) = view(tmp_path / "mine")["watched"]
        told = ", up to step 10,000 of 10,101" if end else ""
        recorded = "last recorded step 10,100"
        assert row["told"] == f"Nothing was found. 1 of 1 rules judged it{told}. Not ended: {recorded}."
        assert row["called"] == f"healthy{told[1:]}"


@pytest.mark.parametrize(
    ("spike", "level", "scale", "why"),
    [
        (60.0, 1.0, "log", "nine in ten losses lie within a tenth of the range"),
        (500.0, 1.0, "log", "the largest loss is more than 100 times the smallest"),
        (3.0, 1.0, "linear", ""),
        (60.0, 30.0, "linear", ""),  # the logarithm would show no more
        (60.0, -1.0, "linear", ""),  # and has no place for these
        (math.nan, 1.0, "linear", ""),
        (math.inf, 1.0, "linear", ""),
    ],
)
def test_one_spike_does_not_press_all_losses_into_a_line(spike, level, scale, why):
    losses = [(step, spike if step == 50 else level + 1 - step / 100) for step in range(101)]
    assert scale_of(losses) == (scale, f" The axis is logarithmic, as {why}." if why else "")


def test_the_page_says_why_its_axis_is_logarithmic(tmp_path):
    with RunWriter.create(tmp_path / "spiked", kind="train", name="spiked", config={}) as writer:
        values = [60.0 if step == 50 else 2 - step / 100 for step in range(101)]
        writer.append("losses", first=0, loss=values, gradient_norm=[1.0] * 101, lr=[0.1] * 101)
    page = render_report([tmp_path / "spiked"])
    assert "The axis is logarithmic, as nine in ten losses lie within a tenth of the range." in page
