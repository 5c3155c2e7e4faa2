"""`levada train --processes N`: what is refused starts nothing; one sentence, and the exit code of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import _terminate_process_handler as torch_handler
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from levada._errors import UsageError
from levada.cli import _parser, main
from levada.runs import Run, RunWriter
from levada.runs.lock import is_held
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

# Where the machine is busy, processes take long to start and to end; a test that fails must say so and not hang.
PATIENCE = 180
MANY = 200_000  # steps: longer than that, and not for ever where a test fails
ENDING = [signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if name in dir(signal)]


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
    handlers = [signal.getsignal(number) for number in ENDING]
    assert main(["train", "train.toml", "--processes", "2"]) == 0
    assert [signal.getsignal(number) for number in ENDING] == handlers
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


def test_processes_get_every_option_of_the_command_line(monkeypatch):
    started = []
    monkeypatch.setattr("levada.commands.launching.launch", lambda words, *_: started.append(words) or 0)
    words = ["train", "train.toml", "--set", "run.steps=2", "--set", "model.depth=3", "--resume", "--debug"]
    parser = _parser()
    options = parser.parse_args(words)
    known = {word for action in options.parser._actions for word in action.option_strings if word.startswith("--")}
    assert known - {"--help", "--processes"} == {word for word in words if word.startswith("--")}, "hand on, and test"
    assert main([*words, "--processes", "2"]) == 0
    for name, value in vars(parser.parse_args(started[0])).items():
        assert name == "parser" or value == getattr(options, name), name
    assert main(["train", "train.toml", "--processes", "2"]) == 0
    assert started[1] == ["train", "train.toml"]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_told_and_its_handlers_are_put_back(number, capsys, monkeypatch):
    def elastic_launch(config, program):
        def run(*words):
            for taken in ENDING:
                signal.signal(taken, torch_handler)
            signal.raise_signal(number)

        return run

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    before = [signal.getsignal(taken) for taken in ENDING]
    try:
        assert main(["train", "train.toml", "--processes", "2"]) == 128 + number
        assert [signal.getsignal(taken) for taken in ENDING] == before
    finally:
        for taken, handler in zip(ENDING, before, strict=True):
            signal.signal(taken, handler)
    begun = "No run was begun in 'new': give the command again.\n"
    told = f"levada train: ended by {number.name}; what was finished is kept.\n"
    assert capsys.readouterr().err == begun + ("" if number == signal.SIGINT else told)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="is of terminals")
def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    """As SIGHUP is under nohup: torch's launcher would take it, and give processes its default, which ends them."""
    asked = []

    def elastic_launch(config, program):
        asked.append(config)
        return lambda *words: None

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    # Whatever these tests run under: nohup has two of them ignored itself.
    before = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGHUP, signal.SIGQUIT)}
    try:
        for held in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGHUP, held)
            assert main(["train", "train.toml", "--processes", "2"]) == 0
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    ignored, taken = (set(config.signals_to_handle.split(",")) for config in asked)
    assert taken == {"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"}
    assert taken - ignored == {"SIGHUP"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="sends signals")
def test_of_a_process_that_a_signal_ended_it_is_said_what_is_kept(capsys, monkeypatch):
    def elastic_launch(config, program):
        def run(*words):
            raise ChildFailedError("levada", {1: ProcessFailure(1, 12, -ended, "")})

        return run

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    words, ended = ["train", "train.toml", "--set", "run.steps=9", "--processes", "2"], signal.SIGKILL
    assert main(words) == 137
    told = "levada train: process 1 of 2 was ended by SIGKILL, as the system does where memory runs out, and a"
    none = "The others were ended too. No run was begun in 'new': give the command again.\n"
    said = capsys.readouterr()
    assert (said.out, said.err.startswith(told), said.err.endswith(none)) == ("", True, True), said.err
    RunWriter.create("new", kind="train", name="new").close()
    again = "levada train train.toml --set run.steps=9 --resume --processes 2\n"
    assert main(words) == 137
    begins = "goes on from its beginning, as it has no complete checkpoint: "
    assert capsys.readouterr().err.endswith(f"The run is kept in 'new', and {begins}{again}")
    checkpoint = Path("new/checkpoints/step-00000004")
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete.json").write_text('{"step": 4, "files": {}}')
    assert main([*words, "--resume"]) == 137
    assert capsys.readouterr().err.endswith(f"goes on after step 4, its newest checkpoint: {again}")
    ended = 35  # a real-time signal, which has no name
    assert main(words) == 128 + 35
    assert "process 1 of 2 was ended by signal 35. The others" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(
    ("number", "code", "told", "ends"),
    [
        (signal.SIGINT, 130, "interrupted", ["stopped"]),
        (signal.SIGTERM, 143, "ended by SIGTERM", ["stopped"]),  # a scheduler's
    ],
)
def test_a_signal_is_said_once_and_ends_all(number, code, told, ends):
    words = [sys.executable, "-m", "levada", "train", "train.toml", "--processes", "2", "--set", "run.steps=1000000"]
    with Path("out").open("w") as out, Path("err").open("w") as err:
        process = subprocess.Popen(words, stdout=out, stderr=err, env={**os.environ})
    try:
        _wait(lambda: process.poll() is not None or _has_trained(), "the first steps")
        process.send_signal(number)
        _wait(lambda: process.poll() is not None, "the end of the launcher")
    finally:
        if process.poll() is None:
            process.terminate()  # torch ends the others, and kills after 30 s those that go on
            process.wait(300)
    said = Path("err").read_text()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "torch/distributed" not in said, "its lines on processes that end"
    assert said.count(told) == 1
    lines = said.splitlines()[-2:]  # of Ctrl-C the first process tells, and the launcher after it
    assert f"levada train: {told}; what was finished is kept." in lines
    assert "The run is kept in 'new', and goes on from its beginning, as it has no complete checkpoint: levada" in said
    assert " train.toml --set run.steps=1000000 --resume --processes 2" in lines[number == signal.SIGINT]
    assert Path("out").read_text() == ""
    assert [event["state"] for event in Run("new").events("end")] == ends
    assert len(losses(Run("new"))) > 0


def _wait(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not come in {PATIENCE} s:\n{Path('err').read_text()}"
        time.sleep(0.05)


def _has_trained() -> bool:
    """Whether losses were stored; then all processes train, since none takes a step without the others."""
    try:
        return len(losses(Run("new"))) > 0
    except UsageError:  # not begun yet
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_processes_do_not_outlive_a_launcher_that_was_killed():
    words = [sys.executable, "-m", "levada", "train", "train.toml", "--processes", "2", "--set", f"run.steps={MANY}"]
    with Path("err").open("w") as err:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=err)
    try:
        _wait(lambda: process.poll() is not None or _has_trained(), "the first steps")
        process.kill()
        process.wait()
        _wait(lambda: not is_held(Path("new")), "the end of the processes")
    finally:
        process.kill()
    said = Path("err").read_text()
    assert said.count("levada train: what started the processes was killed; they end, as by SIGTERM.") == 1
    assert [event["state"] for event in Run("new").events("end")] == ["stopped"]
    RunWriter.open("new").close()  # and nobody keeps it
