"""`levada train --processes N`: what is refused starts nothing; one sentence, and the exit code of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from levada.cli import main
from levada.runs import Run, RunWriter
from levada.training import losses, read, train

SMALL = """
[model]
depth = 2
dim = 8
[data]
evaluated = 16
batch_size = 16
[parallel]
kind = "ddp"
stacked = true
[watch]
enabled = false
[run]
steps = 3
folder = "new"
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.toml").write_text(SMALL)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        ("--set modle.depth=2", {}, "modle is not a table; did you mean model?"),
        ("--set parallel.kind=none", {}, 'parallel.kind "none" is for one process, got --processes 2. Use ddp, fsdp'),
        ("", {"RANK": "0", "WORLD_SIZE": "1"}, "--processes starts them, got 2 under torchrun, which has. Leave it"),
    ],
)
def test_what_is_refused_starts_nothing(words, environment, told, capsys, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", None)
    assert main(["train", "train.toml", "--processes", "2", *words.split()]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert not Path("new").exists()


def test_processes_train_together_and_end_with_one_sentence_and_their_code(capfd):
    assert main(["train", "train.toml", "--processes", "2"]) == 0
    said = capfd.readouterr()
    assert said.out.startswith("3 steps, loss ")
    assert "Warning" not in said.err
    alone = train(read("train.toml", ["parallel.kind=none", "parallel.stacked=false", "run.folder=alone"]))
    assert losses(Run("new")) == pytest.approx(losses(alone.run), rel=1e-6)
    RunWriter.create("kept", kind="check", name="kept").close()
    assert main(["train", "train.toml", "--processes", "2", "--set", "run.folder=kept"]) == 2
    said = capfd.readouterr()
    assert said.err == "levada train: run.folder 'kept' holds a run of kind 'check'. Name another folder.\n"
    assert said.out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interruption_is_said_once_and_ends_all(here):
    words = [sys.executable, "-m", "levada", "train", "train.toml", "--processes", "2", "--set", "run.steps=1000000"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 120
    while not any(Path("new").glob("events.log")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "torch/distributed" not in err, "its lines on processes that end"
    assert err.count("interrupted") == 1
    assert err.splitlines()[-1] == "levada train: interrupted; what was finished is kept."
    assert out == ""
    assert [event["state"] for event in Run("new").events("end")] == ["stopped"]
