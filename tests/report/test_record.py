"""What the page of a watched run says of its record: killed or not, kept steps, a damaged log, what was logged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.report.test_page import HOSTILE, Page

from levada.cli import main
from levada.report import render_report
from levada.report.script import ABSENT, page_script
from levada.runs import Run, RunWriter, SignalWriter, reseal
from levada.runs.codes import encode
from levada.runs.lock import NAME
from levada.watching.verdict.bundle import Bundle, write_bundle

SITES = [{"name": f"layers.{i}", "order": i} for i in range(3)]
KEPT = "step-000040-numerical_overflow"


def words_of(folder: Path) -> str:
    return " ".join(Page(render_report([folder])).text.split()).replace("`", "")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 121 known steps that kept one, and did not say its end; nobody writes to it."""
    folder = tmp_path / "run"
    with (
        RunWriter.create(folder, kind="watch", name="run") as events,
        SignalWriter(folder, sites=SITES, signals=["gradient_rms"]) as signals,
    ):
        events.append("loss", steps=list(range(121)), values=[1.0] * 121)
        for step in range(0, 121, 20):
            signals.append(step, 0.0, encode([0.5, 1.0, 1.0]), {"loss": 1.0})
        rule = {"rule": "numerical_overflow", "severity": "error", "status": "fired", "claim": "NaN.", "where": {}}
        events.append("finding", step=40, **rule, evidence={"rank": 0, "step": 40})
        write_bundle(folder, Bundle(40, "numerical_overflow", "why", values={"args": (torch.ones(2),)}))
        events.append("bundle", step=40, path=f"bundles/{KEPT}")
        events.append("judged", step=120, rules=["loss_spike", "vanishing_gradient"], unjudged={}, waiting=[])
    return folder


def test_of_a_run_that_was_cut_off_the_steps_are_those_that_are_known_at_least(run: Path) -> None:
    words = words_of(run)
    told = "The run was cut off: its process was killed, or the machine went down. It made at least 121 steps."
    assert told in words
    assert "steps at least 121" in words.replace("stepsat", "steps at")
    (run / NAME).write_text("17 on another-machine\n")
    assert "Whether the run goes on or was cut off cannot be known here" in words_of(run)
    (run / NAME).unlink()  # as in a copy, or below an address
    assert "or this is a copy. It made at least 121 steps." in words_of(run)


def test_while_a_writer_is_at_work_the_page_says_so_and_its_half_frame_is_no_damage(run: Path) -> None:
    with RunWriter.open(run) as writer:
        assert "The run is being written now, and has made at least 121 steps." in words_of(run)
        with (run / "events.log").open("ab") as file:
            file.write(b"\x20\0\0\0half")
        assert "This run is damaged" not in words_of(run)
        assert main(["report", str(run), "-o", str(run.parent / "page.html")]) == 0
        with (run / "events.log").open("r+b") as file:
            file.truncate(file.seek(0, 2) - 8)
        writer.append("end", steps=525, samples=0, dropped=0)
    words = words_of(run)
    assert "The run ended after 525 steps." in words
    assert "at least" not in words
    assert "steps525" in words


def test_of_a_page_without_an_alarm_it_is_said_that_a_kept_step_is_no_finding(run: Path) -> None:
    calm = run.parent / "calm"
    with RunWriter.create(calm, kind="watch", name="calm") as events:
        shutil.copytree(run / "bundles", calm / "bundles")
        events.append("loss", steps=list(range(121)), values=[1.0] * 121)
        events.append("judged", step=120, rules=["loss_spike"], unjudged={}, waiting=[])
    assert "where NAME is the function that builds the model. That it was kept is no finding." in words_of(calm)
    rule = {"rule": "loss_spike", "severity": "warn", "status": "fired", "claim": "A jump.", "where": {}}
    with RunWriter.open(calm) as events:
        events.append("finding", step=60, **rule, evidence={"rank": 0, "step": 60})
    assert f"The step of bundles/{KEPT} can be run again" in words_of(calm)
    assert "no finding" not in words_of(calm)


def test_a_kept_step_is_named_with_the_command_and_a_damaged_one_with_what_is_left_of_it(run: Path) -> None:
    words = words_of(run)
    again = f"levada replay {run}/bundles/{KEPT} --model FILE.py:NAME"
    assert f"to run its step again{again}, where NAME is the function that builds the model" in words
    assert words.count("levada replay") == 1, "it is not told twice"
    assert "This run is damaged" not in words
    inside = run.parent / "training" / "watch" / "1"
    shutil.copytree(run, inside)
    (inside.parents[1] / "config.toml").write_text("[run]\n")  # of a training, whose configuration builds the model
    own = f"levada replay {inside}/bundles/{KEPT} --model {inside.parents[1]}/config.toml"
    assert f"to run its step again{own}" in words_of(inside)
    with RunWriter.open(inside) as events:  # a finding that is not on the page, as of very many
        open_one = {"rule": "numerical_overflow", "severity": "error", "status": "unknown", "claim": "Who knows."}
        events.append("finding", step=50, **open_one, where={})
    assert f"The step of bundles/{KEPT} can be run again: {own}." in words_of(inside)
    tensors = run / "bundles" / KEPT / "tensors.pt"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-9] + b"\0" + content[-8:])
    page = render_report([run])
    words = " ".join(Page(page).text.split())
    assert f"The kept step bundles/{KEPT} cannot be run again: the bytes of tensors.pt are not those" in words
    assert "bundle.json still says the step, why it was kept and what was found" in words
    assert f"The command levada doctor {run} looks at every checksum of it." in words
    assert page.index("cannot be run again") < page.index("<figure")
    assert "can be run again" not in words
    assert "to run its step again" not in words
    assert again not in words
    tensors.unlink()
    (tensors.parent / "bundle.json").unlink()
    tensors.parent.rmdir()
    assert f"bundles/{KEPT} was kept, and is no longer there." in words_of(run)


def test_a_page_that_lacks_something_is_told_and_exits_with_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = str(run.parent / "page.html")
    assert main(["report", str(run), "-o", page]) == 0
    told = [f"{run} is not ended: last recorded step 120.", *([] if page_script() else [ABSENT])]
    assert capsys.readouterr().err.splitlines() == told
    (run / "bundles" / KEPT / "tensors.pt").write_bytes(b"")
    assert main(["report", str(run), "-o", page]) == 1
    told, _ = capsys.readouterr().err.split(f"{run} is not ended")
    assert told.startswith(f"{run} is damaged: The kept step bundles/{KEPT} cannot be run again: ")
    assert told.endswith(f"Look at all of it: levada doctor {run}\n")
    assert len(told.splitlines()) == 1


def test_of_a_damaged_log_the_page_says_that_it_is_damaged_and_not_that_samples_are_few(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", kind="watch", name="run") as events:
        events.append("loss", steps=[0, 1], values=[1.0, 1.0])
        why = {"lost_update": "3 samples in a row are needed"}
        events.append(
            "judged", step=1, rules=["loss_spike"], unjudged=why, waiting=["lost_update"], few=["lost_update"]
        )
        cut = (tmp_path / "run" / "events.log").stat().st_size
        events.append("judged", step=99, rules=["loss_spike", "vanishing_gradient"], unjudged={}, waiting=[])
        events.append("end", steps=100, samples=0, dropped=0)
    log = tmp_path / "run" / "events.log"
    assert "The learning signal reached every block." in words_of(tmp_path / "run")
    content = bytearray(log.read_bytes())
    content[cut + 20] ^= 1
    log.write_bytes(content)
    words = words_of(tmp_path / "run")
    assert "Not known, as the event log is damaged" in words
    assert "Too few samples" not in words
    assert "Whether the run ended cannot be known, as the end of its event log is damaged" in words
    reseal(tmp_path / "run")
    assert "The run ended after 100 steps." in words_of(tmp_path / "run")


def test_what_the_loop_logged_is_on_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RunWriter.create(folder, kind="watch", name="run").close()
    with SignalWriter(folder, sites=SITES, signals=["gradient_rms"]) as signals:
        for step in (0, 20, 40):
            logged = {"accuracy": 0.25 + step / 80, "overhead": 0.01, "lr": 0.1, HOSTILE: float("nan")}
            signals.append(step, 0.0, encode([0.5, 1.0, 1.0]), logged | ({"seen": 640.0} if step else {}))
    page = render_report([folder])
    words = " ".join(Page(page).text.split())
    assert "accuracy0.75logged; at step 0: 0.25" in words
    assert "seen640logged; at step 20: 640" in words
    assert page.count("As the loop logged it, at 3 samples.") == 1, "of what is no number there is no curve"
    assert "As the loop logged it, at 2 samples." in words
    assert "lr0.1" not in words
    assert {tag for tag, _ in Page(page).tags} & {"script", "img"} == set()


def test_of_one_process_no_rank_is_named(run: Path) -> None:
    assert "rank0" not in words_of(run)
    with SignalWriter(run, rank=1, sites=SITES, signals=["gradient_rms"]) as signals:
        signals.append(0, 0.0, encode([0.5, 1.0, 1.0]), {})  # it was killed before the first
    assert "rank0" in words_of(run)
    assert Run(run).ranks == (0, 1)


def test_commands_on_a_page_work_from_wherever_it_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"levada replay {run}/bundles/{KEPT} --model" in words_of(Path("run"))
    (run / "bundles" / KEPT / "tensors.pt").write_bytes(b"")
    assert f"The command levada doctor {run} looks at every checksum of it." in words_of(Path("run"))
    with RunWriter.create("other", kind="watch", name="other"):
        assert Run("other").manifest.cwd == str(tmp_path)
    assert f"in {tmp_path}" in words_of(Path("other"))


def test_beside_an_error_the_page_does_not_list_which_rules_have_not_judged(run: Path) -> None:
    with RunWriter.open(run) as events:
        events.append("judged", step=120, rules=["loss_spike"], unjudged={"dead_units": "no zeros"}, waiting=[])
    words = words_of(run)
    assert "1 of 2 rules judged it." in words
    assert "Not judged" not in words
    with RunWriter.open(run) as events:
        rule = {"rule": "numerical_overflow", "severity": "error", "status": "clear", "claim": "NaN.", "where": {}}
        events.append("finding", step=60, **rule)
    assert "1 of 2 rules judged it. Not judged: dead_units: no zeros." in words_of(run)


def test_a_page_replaces_only_a_page(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(run.parent)
    other = run.parent / "report.html"
    other.write_text("<html>mine</html>")
    assert main(["report", "run"]) == 2
    assert "this is another file. Name one by -o." in " ".join(capsys.readouterr().err.split())
    assert other.read_text() == "<html>mine</html>"
    other.unlink()
    assert main(["report", "run"]) == main(["report", "run"]) == 0
    assert "levada" in other.read_text()
