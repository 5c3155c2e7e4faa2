"""Of a run of several processes that has ended: which of them never said their end."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.faults import small

from levada.report import render_report
from levada.runs import RunWriter, SignalWriter, doctor
from levada.runs.codes import encode


def append(signals: SignalWriter, steps: range) -> None:
    for step in steps:
        row = encode([1.0] * len(small.SITES))
        signals.append(step, float(step), row * len(small.SIGNALS), {})
    assert signals.flush(30.0)


def test_a_process_that_was_killed_is_named_and_none_that_ended_writes_or_is_of_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = "process 1 has no end: it was killed, or its machine went down"
    with RunWriter.create(run, kind="watch", name="run") as events:
        events.append("loss", steps=[0, 1, 2], values=[1.0] * 3)
    with SignalWriter(run, sites=small.SITES, signals=small.SIGNALS) as signals:
        append(signals, range(3))
    with SignalWriter(run, rank=1, sites=small.SITES, signals=small.SIGNALS) as signals:
        append(signals, range(2))
        shutil.copytree(run, tmp_path / "all killed")  # nothing is sealed, and no writer is at work in it
        with RunWriter.open(run) as events:
            events.append("end", steps=3, samples=3, dropped=0, error="RuntimeError: Connection reset by peer")
        shutil.copytree(run, tmp_path / "killed")
        assert told not in str(doctor(run)), "it still writes"
    assert told not in str(doctor(run)), "it has ended"
    assert told not in str(doctor(tmp_path / "all killed")), "the first has no end either, and that is said"
    killed = tmp_path / "killed"
    assert f"\n  {told}\n" in str(doctor(killed))
    page = " ".join(render_report([killed]).split())
    assert f"The run was stopped by an error after 3 steps: RuntimeError. P{told[1:]}." in page
    assert f"P{told[1:]}" not in render_report([run])
    with RunWriter.open(killed) as events:  # by one process now
        events.append("continued", step=3)
        events.append("end", steps=9, samples=0, dropped=0)
    assert told not in str(doctor(killed)), "it is of before"
