"""Two writers of one folder, in two processes that begin at the same moment: one has it, and the other is refused."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from levada.runs import Run, SignalWriter, doctor

__all__ = ["two_writers"]

_WRITER = """
import sys
from levada._errors import UsageError
from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode
number = int(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    how, folder = line.split(maxsplit=1)
    folder = folder.rstrip()
    try:
        if how == "create":
            writer = RunWriter.create(folder, kind="watch", name="raced")
        elif how == "open":
            writer = RunWriter.open(folder)
        else:
            writer = SignalWriter(folder, sites=[{"name": "a"}], signals=["x"])
    except UsageError as error:
        rule = "one writer at a time" in str(error) or "this holds a run" in str(error)
        print("refused" if rule else error, flush=True)
        sys.stdin.readline()
        continue
    print("held", flush=True)
    sys.stdin.readline()  # until the other has tried
    if how == "signals":
        for step in range(40):
            writer.append(step, 0.0, encode([2.0 ** number]))
    else:
        for step in range(5):
            writer.append("note", number=number, step=step)
    writer.close()
    print("closed", flush=True)
"""


def two_writers(trials: int) -> dict[str, Any]:
    """Let two processes race for a new folder, for one that holds a run, and for the signals of a rank.

    Each of the three counts as a trial; AssertionError if both have it, if neither has, or if something is not whole.

    Returns:
        What was counted: trials, and how often the first of the processes had the folder.
    """
    counted = Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for number in range(2)
        ]
        try:
            assert [_line(writer) for writer in writers] == ["ready", "ready"]
            for trial in range(-(-trials // 3)):
                folder = Path(root) / f"run-{trial}"
                had = [_race(writers, how, folder, trial) for how in ("create", "open", "signals")]
                _whole(folder, had)
                counted["trials"] += len(had)
                counted["had_by_the_first"] += had.count(0)
        finally:
            for writer in writers:
                writer.communicate(timeout=60)
    return dict(counted)


def _race(writers: list[subprocess.Popen[str]], how: str, folder: Path, trial: int) -> int:
    for writer in writers[:: -1 if trial % 2 else 1]:
        _tell(writer, f"{how} {folder}")
    found = [_line(writer) for writer in writers]
    assert sorted(found) == ["held", "refused"], found
    for writer in writers:
        _tell(writer, "")
    winner = found.index("held")
    assert _line(writers[winner]) == "closed"
    return winner


def _whole(folder: Path, had: list[int]) -> None:
    run = Run(folder)
    notes = [(event["number"], event["step"]) for event in run.events("note")]
    assert notes == [(number, step) for number in had[:2] for step in range(5)]
    signals = run.signals()
    assert signals.steps == tuple(range(40))
    assert list(signals.read("x")) == [[2.0 ** had[2]]] * 40
    assert doctor(folder).healthy
    SignalWriter(folder, sites=[{"name": "a"}], signals=["x"]).close()  # nobody keeps the lock


def _tell(writer: subprocess.Popen[str], text: str) -> None:
    assert writer.stdin is not None
    writer.stdin.write(f"{text}\n")
    writer.stdin.flush()


def _line(writer: subprocess.Popen[str]) -> str:
    assert writer.stdout is not None
    return writer.stdout.readline().strip()
