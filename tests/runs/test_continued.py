"""What a run tells that went on from an earlier step: only what still holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.faults import small

from levada.runs import Run, RunWriter, SignalWriter, doctor
from levada.runs.ending import last_recorded
from levada.runs.losses import Told, Waiting
from levada.runs.lost import lost_of_log


@pytest.mark.parametrize("later", [1, 30])
def test_the_last_recorded_step_is_that_of_the_last_process(tmp_path: Path, later: int) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="run") as writer:
        writer.append("loss", steps=list(range(101)), values=[1.0] * 101, time=50.0)
        with SignalWriter(tmp_path, sites=small.SITES, signals=small.SIGNALS) as signals:
            for step in (0, 20, 40, 60, 80, 100):
                signals.append(step, step / 2, small.codes(step), {})
        writer.append("continued", step=20)
    assert "not ended: last recorded step 19\n" in str(doctor(tmp_path))
    with RunWriter.open(tmp_path) as writer:
        for i in range(later):
            writer.append("loss", steps=[20 + i], values=[0.5], time=100.0 + i)
    assert f"not ended: last recorded step {19 + later} at 1970-01-01 00:0" in str(doctor(tmp_path))
    with SignalWriter(tmp_path, sites=small.SITES, signals=small.SIGNALS) as signals:
        signals.append(60, 140.0, small.codes(60), {})
    assert "not ended: last recorded step 60 at 1970-01-01 00:02:20 UTC" in str(doctor(tmp_path))
    assert last_recorded([{"type": "continued", "step": 0}], None) == "no step was recorded"


def test_losses_of_steps_behind_a_continuation_are_cut(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="run") as writer:
        writer.append("loss", steps=list(range(10)), values=[float(i) for i in range(10)])
        run = Run(tmp_path)
        assert len(run.losses()) == 10
        writer.append("continued", step=4)
        assert run.losses() == [(i, float(i)) for i in range(4)]
        writer.append("loss", steps=[4, 5], values=[40.0, 50.0])
        assert run.losses()[3:] == [(3, 3.0), (4, 40.0), (5, 50.0)]
    assert Run(tmp_path).losses() == run.losses()


def test_what_was_logged_from_the_step_on_at_which_a_run_went_on_is_cut(tmp_path: Path) -> None:
    told = Told(tmp_path / "events.log")
    with RunWriter.create(tmp_path, kind="watch", name="run") as writer:
        for step in (3, 4, 5):
            writer.append("logged", step=step, values={"accuracy": step / 10})
        writer.append("logged", step=5, next=6, values={"recall": 0.5})
        writer.append("continued", step=6)
        assert told.logged() == {"accuracy": {3: 0.3, 4: 0.4, 5: 0.5}}
        assert told.waiting() == [("recall", Waiting(5, 6, 0.5, until=6))]
        writer.append("continued", step=4)
        assert told.logged() == {"accuracy": {3: 0.3}}
        assert told.waiting() == []
        writer.append("logged", step=3, next=4, values={"recall": 0.3})
        writer.append("logged", step=4, next=5, values={"precision": 0.4})
        writer.append("continued", step=4)
        writer.append("continued", step=9)
    assert told.waiting() == [("recall", Waiting(3, 4, 0.3, until=4))]


def test_what_is_lost_over_a_restart_is_not_between_a_later_and_an_earlier_step() -> None:
    mended = {"type": "repaired", "at": 99, "num_bytes": 9, "moved_to": "events.torn-1"}
    events = [{"type": "loss", "steps": [380]}, mended, {"type": "loss", "steps": [200]}]
    (lost,) = lost_of_log(events, None)
    assert lost.steps == "after step 380, or, as the run went on from an earlier step, before step 200"
