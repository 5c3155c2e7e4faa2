"""What a process that is killed leaves of its losses, and what of them a sample tells again."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import levada
from levada.cli import main
from levada.report.watch import watch_view
from levada.runs import Run, RunWriter, SignalWriter, doctor
from levada.runs.losses import Waiting, unsampled
from levada.watching.measure.sample import Sample
from levada.watching.record import kept_losses, kept_scalars
from levada.watching.record.kept_losses import KeptLosses
from levada.watching.record.kept_scalars import KeptScalars


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_losses, "SECONDS", 0.0)


def adding(writer: RunWriter) -> Callable[..., None]:
    def add(type: str, **payload: Any) -> None:
        writer.append(type, **{key: value() if callable(value) else value for key, value in payload.items()})

    return add


def number(value: float) -> Tensor:
    return torch.tensor(value)


def sample(*losses: tuple[int, float]) -> Sample:
    return Sample(losses[-1][0], 7.0, {}, {}, losses)


def test_a_killed_training_has_its_losses_but_for_the_last_moment_and_is_not_called_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, torch, levada
            from types import SimpleNamespace
            from torch import nn
            from levada.watching.record import kept_losses

            clock = SimpleNamespace(now=0.0, time=kept_losses.time.time, monotonic=lambda: clock.now)
            kept_losses.time = clock
            model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())], nn.Linear(8, 2))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            watch = levada.watch(model, optimizer, run=sys.argv[1], every=1000)
            for step in range(200):
                optimizer.zero_grad()
                model(torch.ones(4, 8)).square().mean().backward()
                optimizer.step()
                clock.now += 0.01
            # What was handed to the thread that writes is there a moment later, on a machine that does not stall.
            assert all(one.flush() for one in watch._listeners if hasattr(one, "flush"))
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    done = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    losses = Run(tmp_path / "run").losses()
    assert [step for step, _ in losses] == list(range(len(losses)))
    assert 200 > len(losses) >= 174, "0.25 s are 25 steps"
    told = f"not ended: last recorded step {losses[-1][0]:,} at 20"
    assert told in str(doctor(tmp_path / "run"))
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "-o", str(page)]) == 0
    assert f"run is {told}" in capsys.readouterr().err
    assert told[1:] in page.read_text()
    assert "not judged, not ended" in page.read_text()


def test_a_killed_training_has_what_it_logged_but_for_the_last_moment(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, torch, levada
            from types import SimpleNamespace
            from torch import nn
            from levada.watching.record import kept_scalars

            clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
            kept_scalars.time = clock
            model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            watch = levada.watch(model, optimizer, run=sys.argv[1], every=1000)
            for step in range(100):
                watch.log(progress=step, **({"once": 7.0} if step == 10 else {}))
                optimizer.zero_grad()
                model(torch.ones(4, 8)).square().mean().backward()
                optimizer.step()
                clock.now += 0.01
            assert all(one.flush() for one in watch._listeners if hasattr(one, "flush"))
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    done = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    signals = Run(tmp_path / "run").signals()
    (first, zero), (step, last) = signals.scalars("progress")
    assert (first, zero) == (0, 0.0), "the sample of the first step"
    assert last in (step, step + 1)
    assert 100 > last >= 73, "0.25 s are 25 steps"
    assert [value for _, value in signals.scalars("once")] == [7.0]
    assert set(signals.scalar_names) >= {"progress", "once"}


def test_what_was_logged_early_and_then_brought_by_a_sample_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_scalars, "SECONDS", 0.0)
    monkeypatch.setattr(kept_scalars, "EACH", 0.0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with levada.watch(model, optimizer, run=tmp_path / "run", every=4, max_overhead=math.inf) as probe:
        for step in range(7):
            probe.log(**{"each": float(step), "second": 2.0} if step == 2 else {"each": float(step)})
            model(torch.ones(3, 2)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(listener.flush() for listener in probe._listeners if hasattr(listener, "flush"))
        assert Run(tmp_path / "run").signals().scalars("each") == [(0, 0.0), (4, 4.0), (5, 6.0)], "as if killed now"
    events = [event["values"] for event in Run(tmp_path / "run").events("logged") if "next" in event]
    assert events == [{"each": float(step), **({"second": 2.0} if step == 2 else {})} for step in range(7)]
    signals = Run(tmp_path / "run").signals()
    assert signals.scalars("each") == [(0, 0.0), (4, 4.0), (6, 6.0)]
    assert signals.scalars("second") == [(4, 2.0)]


def test_numbers_that_were_logged_wait_for_their_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now, events = [0.0], list[dict[str, Any]]()
    monkeypatch.setattr(kept_scalars, "time", SimpleNamespace(monotonic=lambda: now[0]))
    kept = KeptScalars(lambda type, **fields: events.append({"type": type, **fields}))
    kept.hear(5, {"a": 1.0})
    assert events == [{"type": "logged", "step": 4, "next": 5, "values": {"a": 1.0}}]
    kept.hear(6, {"a": 2.0, "b": 2.0})
    kept.hear(7, {"a": 3.0})
    kept.look()
    assert len(events) == 1
    now[0] = 0.25
    kept.look()
    assert [(event["next"], event["values"]) for event in events[1:]] == [(6, {"b": 2.0}), (7, {"a": 3.0})]
    many = {str(place): 0.0 for place in range(64)}
    now[0] = 1.0
    kept.hear(8, many)
    kept.hear(9, many)
    now[0] = 1.9
    kept.look()
    assert len(events) == 4, "64 numbers have a second between them"
    now[0] = 2.0
    kept.sampled(Sample(8, 0.0, {}))
    kept.look()
    assert events[-1]["next"] == 9
    kept.hear(10, {"a": 4.0})
    kept.sampled(Sample(10, 0.0, {"a": 4.0}))
    now[0] = 9.0
    kept.look()
    assert len(events) == 5, "a sample has brought it"


def test_what_has_ended_is_written_as_it_ended_and_with_the_steps_that_were_not_heard_of(
    tmp_path: Path, at_once: None
) -> None:
    ended: list[tuple[int, Tensor]] = []
    with RunWriter.create(tmp_path, kind="watch", name="two optimizers") as writer:
        losses = KeptLosses(adding(writer), lambda: ended, shared=False)
        losses.hear(0, number(1.0))
        assert list(Run(tmp_path).events("loss")) == [], "step 0 is under way: a second backward pass may add to it"
        ended += [(0, number(3.0)), (1, number(4.0))]  # of step 1 nobody was told: a scaler skipped its update
        losses.hear(2, number(0.5))
        assert Run(tmp_path).losses() == [(0, 3.0), (1, 4.0)]
        ended.append((2, number(5.0)))
        losses.keep(2)
        assert Run(tmp_path).losses() == [(0, 3.0), (1, 4.0), (2, 5.0)]


def test_what_a_sample_is_about_to_bring_comes_first(tmp_path: Path, at_once: None) -> None:
    ended: list[tuple[int, Tensor]] = []
    with RunWriter.create(tmp_path, kind="watch", name="a sample on its way") as writer:
        losses = KeptLosses(adding(writer), lambda: ended, shared=False)
        losses.hear(0, number(1.0))
        ended.append((1, number(2.0)))  # that of step 0 is on its way from the device, with the sample
        losses.hear(1, number(2.0))
        losses.hear(2, number(3.0))
        assert Run(tmp_path).losses() == []
        losses.sampled(sample((0, 1.5)))
        losses.hear(3, number(4.0))
        assert Run(tmp_path).losses() == [(0, 1.5), (1, 2.0)]


def test_the_means_of_a_sample_replace_what_one_process_wrote_before_it(tmp_path: Path, at_once: None) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="several") as writer:
        losses = KeptLosses(adding(writer), tuple, shared=True)
        for step in range(4):
            losses.hear(step, number(float(step)))
        assert Run(tmp_path).losses() == [(step, float(step)) for step in range(4)]
        losses.sampled(sample((0, 10.0), (1, 11.0), (2, 12.0)))
        losses.hear(4, number(4.0))
        assert Run(tmp_path).losses() == [(0, 10.0), (1, 11.0), (2, 12.0), (3, 3.0), (4, 4.0)]
        losses.keep(4)
    assert Run(tmp_path).losses()[-2:] == [(3, 3.0), (4, 4.0)]


def test_the_means_of_a_sample_replace_what_was_written_because_of_a_finding(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="several") as writer:
        losses = KeptLosses(adding(writer), tuple, shared=True)
        for step in range(4):
            losses.hear(step, number(float(step)))
        losses.found(3)
        assert Run(tmp_path).losses() == [(step, float(step)) for step in range(4)]
        losses.hear(4, number(4.0))
        losses.sampled(sample(*((step, 10.0 + step) for step in range(1, 5))))
    assert Run(tmp_path).losses() == [(0, 0.0), (1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0)]


def test_where_samples_are_rare_their_means_come_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_losses, "MOST", 8)
    with RunWriter.create(tmp_path, kind="watch", name="several") as writer:
        losses = KeptLosses(adding(writer), tuple, shared=True)
        for step in range(20):
            losses.hear(step, number(float(step)))
        assert len(losses) < 8
        losses.sampled(sample(*((step, 100.0 + step) for step in range(15, 19))))
        losses.keep(20)
    assert Run(tmp_path).losses() == [(step, step + 100.0 * (15 <= step <= 18)) for step in range(20)]


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_that_was_left_and_is_made_again_has_the_loss_with_which_it_was_made(
    tmp_path: Path, shared: bool
) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="again") as writer:
        losses = KeptLosses(adding(writer), tuple, shared=shared)
        losses.hear(6, number(2.0))
        losses.hear(7, number(math.nan))
        losses.found(7)
        assert math.isnan(Run(tmp_path).losses()[-1][1])
        losses.hear(7, number(0.5))
        losses.hear(8, number(0.25))
        losses.sampled(sample((6, 2.0), (7, 0.5), (8, 0.25)))
    assert Run(tmp_path).losses() == [(6, 2.0), (7, 0.5), (8, 0.25)]


def test_a_watched_loop_that_makes_a_step_again_keeps_its_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    with levada.watch(model, optimizer, run=tmp_path / "run", every=5) as watching:
        for step in range(12):
            for factor in (math.nan, 1.0) if step == 7 else (1.0,):
                optimizer.zero_grad()
                loss = model(factor * torch.ones(2, 4)).square().mean()
                loss.backward()
                if math.isfinite(loss.item()):
                    seen.append((step, loss.item()))
                    optimizer.step()
                else:
                    watching.leave()
    assert Run(tmp_path / "run").losses() == seen


def test_a_run_reads_on_where_it_stopped_and_anew_where_the_log_is_another(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="read on") as writer:
        run = Run(tmp_path)
        writer.append("loss", steps=[0, 1], values=[1.0, math.inf])
        assert run.losses() == [(0, 1.0), (1, math.inf)]
        writer.append("loss", steps=[1, 2], values=[2.0, 3.0])
        assert run.losses() == [(0, 1.0), (1, 2.0), (2, 3.0)] == Run(tmp_path).losses()
    log = tmp_path / "events.log"
    with RunWriter.create(tmp_path / "other", kind="watch", name="another log, which is longer") as writer:
        for step in range(20):
            writer.append("loss", steps=[step], values=[0.5])
    (tmp_path / "other" / log.name).replace(log)
    assert run.losses() == [(step, 0.5) for step in range(20)]


def test_what_is_logged_behind_the_last_sample_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with levada.watch(model, optimizer, run=tmp_path / "run", every=1000) as probe:
        for step in range(5):
            probe.log(accuracy=step / 4, **({"first": 1.0} if step == 0 else {}))
            model(torch.ones(3, 2)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        probe.log(final=math.inf)
    signals = Run(tmp_path / "run").signals()
    assert signals.scalars("accuracy") == [(0, 0.0), (4, 1.0)]
    assert signals.scalars("final") == [(4, math.inf)]
    assert signals.scalars("first") == [(0, 1.0)]
    assert set(signals.scalar_names) >= {"accuracy", "final"}
    assert signals.steps == (0,), "no sample is made up"
    with RunWriter.open(tmp_path / "run") as writer:  # from a checkpoint before what was logged last
        writer.append("continued", step=3)
    assert Run(tmp_path / "run").signals().scalars("accuracy") == [(0, 0.0)]


def test_what_a_killed_process_logged_last_stays_when_another_logs_the_same(tmp_path: Path) -> None:
    sites = [{"name": "0", "order": 0, "kind": "Linear", "shape": [2, 2], "parameters": ["0.weight"]}]
    row = b"\0\0"

    def logged(step: int, value: float) -> None:
        writer.append("logged", step=step, values={"val": value}, next=step + 1)

    def scalars() -> list[tuple[int, float]]:
        return Run(writer.path).signals().scalars("val")

    with (
        RunWriter.create(tmp_path, kind="watch", name="mine") as writer,
        SignalWriter(writer.path, sites=sites, signals=["signal_rms"]) as signals,
    ):
        signals.append(0, 0.0, row, scalars={"val": 0.5})
        assert signals.flush()
        logged(9, 9.0)
        logged(29, 29.0)
        assert scalars() == [(0, 0.5), (29, 29.0)]
        writer.append("continued", step=30)
        logged(34, 34.0)
        assert scalars() == [(0, 0.5), (29, 29.0), (34, 34.0)]
        signals.append(35, 0.0, row, scalars={"val": 34.0})
        assert signals.flush()
        assert scalars() == [(0, 0.5), (29, 29.0), (35, 34.0)], "the sample brings its own process's number alone"
        logged(39, 39.0)
        writer.append("continued", step=30)
        assert (29, 29.0) in scalars()
        assert 39.0 not in dict(scalars()).values()
        writer.append("continued", step=29)
        assert 29.0 not in dict(scalars()).values(), "the step came again"


def test_what_a_sample_brought_before_the_process_was_killed_counts_once_after_it() -> None:
    brought = Waiting(9, 10, 9.0, until=30)
    assert unsampled({20: 9.0, 34: 1.0}, [brought]) == {}
    assert unsampled({34: 1.0}, [brought]) == {9: 9.0}
    assert unsampled({29: 1.0, 30: 3.0}, [Waiting(29, 30, 2.0, until=30)]) == {29: 2.0}
    assert unsampled({5: 1.0}, [Waiting(5, 6, 2.0)]) == {6: 2.0}


def test_of_several_processes_the_losses_say_whose_they_are(tmp_path: Path) -> None:
    """A loss that is finite on one may have been NaN on another."""
    with RunWriter.create(tmp_path / "run", kind="watch", name="run") as writer:
        losses = KeptLosses(adding(writer), tuple, shared=True)
        for step in range(6):
            losses.hear(step, number(2.0))
            if step == 2:
                losses.sampled(sample((0, 3.0), (1, 3.0), (2, 3.0)))
        losses.keep(6)
    run = Run(tmp_path / "run")
    assert run.losses() == [(0, 3.0), (1, 3.0), (2, 3.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    figure = watch_view(run, "run", list(run.events()))["figures"][0]
    assert "They are means over all processes; of steps 3 to 5 they are those of process 0 alone" in str(figure)
