"""Every command with a file that is missing, one of the wrong kind, a wrong value, and Ctrl-C at any of its calls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch

import levada
from levada.__main__ import start
from levada.cli import main
from levada.commands import COMMANDS
from levada.commands.output import write
from levada.runs import RunWriter
from levada.training import resolve, train
from levada.watching.verdict.bundle import Bundle, write_bundle

LIBRARY = str(Path(levada.__file__).parent)
NETS = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

def batch():
    return torch.randn(16, 2), torch.arange(16) % 2
"""
KEPT = "kept/bundles/step-000003-loss_spike"

# command -> what is wrong -> its words, and what is said of them.
WRONG: dict[str, dict[str, tuple[str, str]]] = {
    "check": {
        "missing": ("none.py:build", "There is no file 'none.py'."),
        "kind": ("notes.py:build", "Importing 'notes.py' raised SyntaxError"),
        "value": ("nets.py:build --lr -1e-3", "--lr must be a positive finite number, got -1e-3. Leave it out"),
    },
    "fix": {
        "missing": ("none.py:build", "There is no file 'none.py'."),
        "kind": ("notes.txt", "A target is path/to/file.py:name or package.module:name, got 'notes.txt'."),
        "value": ("nets.py:build --trials 1", "--trials must be at least 3, got 1."),
    },
    "run": {
        "missing": ("none.py", "SCRIPT must be a file that exists, got 'none.py'. Check the path."),
        "kind": ("train.toml", "SCRIPT must be a Python file, got 'train.toml'. To train as that says: levada train"),
        "value": ("--every 0 nets.py", "--every must be at least 1, got 0. 20 is every twentieth step."),
    },
    "train": {
        "missing": ("none.toml", "'none.toml' cannot be read: No such file or directory. Give a TOML file."),
        "kind": ("pixels.bin", "'pixels.bin' is not TOML: it holds bytes that are no text."),
        "value": ("train.toml --set model.depth=0", "model.depth must be at least 1, got 0. Leave it out for the"),
    },
    "replay": {
        "missing": ("none --model nets.py:build", "got 'none', which does not exist. Check the path."),
        "kind": ("notes.txt --model nets.py:build", "which is a file. Give a folder in a run's bundles."),
        "value": (f"{KEPT} --model nets.py:build --as-built --loss MSE", "got 'MSE'. Did you mean 'mse'?"),
    },
    "study": {
        "missing": ("R99", "study 'R99' is not known."),
        "kind": ("R1 --out notes.txt", "notes.txt is a file. Name a folder."),
        "value": ("R1 --seeds 0", "--seeds must be at least 1, got 0. Leave it out for the seeds of the scale."),
    },
    "report": {
        "missing": ("none", "none: runs are looked for in a folder that exists, and this is none. Check the path."),
        "kind": ("notes.txt", "runs are looked for in a folder, and this is a file. Give the folder of the run."),
        "value": ("kept -o nets.py", "nets.py"),
    },
    "serve": {
        "missing": ("none", "a folder that holds runs is served, and there is none here. Give the folder."),
        "kind": ("notes.txt", "a folder that holds runs is served, and this is a file. Give the folder."),
        "value": ("kept --port 65536", "--port must be in [0, 65535], got 65536."),
    },
    "explore": {
        "missing": ("--out none/x.html", ""),
        "kind": ("--out empty", ""),
        "value": ("--port -1", "--port must be in [0, 65535], got -1."),
    },
    "export": {
        "missing": ("none --to tensorboard", "a run is a folder that exists; there is nothing here. Check the path."),
        "kind": ("notes.txt --to tensorboard", "a run is a folder, and this is a file."),
        "value": ("kept --to tensorbord", "got 'tensorbord'. Did you mean 'tensorboard'?"),
    },
    "doctor": {
        "missing": ("none", "runs are looked for in a folder that exists, and this is none. Check the path."),
        "kind": ("notes.txt", "runs are looked for in a folder, and this is a file. Give the folder of the run."),
        "value": ("empty", "a run holds run.json, and this does not. Give the folder that levada wrote."),
    },
    "bench": {
        "missing": ("speed", "Benchmarks are part of the repository, not of the package: run this in a checkout"),
        "kind": ("notes.txt", "run this in a checkout of levada."),
        "value": ("--quik", "there is no option --quik. Did you mean '--quick'?"),
    },
    "list": {
        "missing": ("cell", "KIND must be one of connections, cells, diagnostics"),
        "kind": ("notes.txt", "KIND must be one of"),
        "value": ("Cells", "got 'Cells'. Did you mean 'cells'?"),
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("notes.py").write_text("Dear reader, this is no program.\n")
    Path("notes.txt").write_text("a: b\n")
    Path("pixels.bin").write_bytes(b"\x00\xff")
    Path("train.toml").write_text('[model]\ndepth = 2\ndim = 8\n[run]\nsteps = 2\nfolder = "new"\n')
    Path("empty").mkdir()
    with RunWriter.create("kept", kind="check", name="kept") as writer:
        writer.append("report", report={"verdict": "healthy", "blocks": [], "findings": []})
    values = {"args": (torch.ones(16, 2),), "targets": torch.arange(16) % 2}
    write_bundle(Path("kept"), Bundle(3, "loss_spike", "why", values=values, facts={"model": "Sequential"}))
    return tmp_path


def test_every_command_is_tried_with_all_that_can_be_wrong():
    assert {*WRONG} == {*COMMANDS}
    assert all({*cases} == {"missing", "kind", "value"} for cases in WRONG.values())


@pytest.mark.parametrize(("command", "what"), [(command, what) for command, cases in WRONG.items() for what in cases])
def test_what_is_wrong_is_one_sentence_and_exit_code_2(command, what, capsys):
    words, told = WRONG[command][what]
    before = sorted(Path().rglob("*"))
    assert main([command, *words.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"levada {command}: ")
    assert len(said.err.splitlines()) == 1
    assert told in said.err
    assert [
        path for path in sorted(Path().rglob("*")) if path.name != "__pycache__" and path.suffix != ".pyc"
    ] == before


class Interruption:
    """Raises what Ctrl-C raises at the nth call of a function of the library, or counts these."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls = at, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event != "call" or not file.startswith(LIBRARY) or file.endswith(("cli.py", "parsing.py", "_ranks.py")):
            return  # words are parsed before a command
        if name in ("__del__", "<genexpr>"):  # what they raise when they are let go of, Python prints and forgets
            return
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt

    def during(self, call: Callable[[], Any]) -> Any:
        sys.setprofile(self)
        try:
            return call()
        finally:
            sys.setprofile(None)


INTERRUPTED = {
    "check": "check nets.py:build --batch nets.py:batch --budget 0 --json out.json --html out.html",
    "replay": f"replay {KEPT} --model nets.py:build --as-built --json out.json",
    "report": "report kept -o out.html",
    "doctor": "doctor kept",
    "export": "export watched --to tensorboard --out out",
    "list": "list remedies",
}


@pytest.mark.parametrize("command", INTERRUPTED)
def test_ctrl_c_is_one_sentence_and_130_and_leaves_no_half_file(command, capsys):
    def run() -> int:
        return main(INTERRUPTED[command].split())

    if command == "export":
        train(resolve({"model": {"depth": 2, "dim": 8}, "run": {"steps": 3, "folder": "watched"}}))
    run()  # imports
    counted = Interruption()
    counted.during(run)
    for out in ("out.json", "out.html"):
        Path(out).unlink(missing_ok=True)
    capsys.readouterr()
    assert counted.calls > 20
    for share in (0.02, 0.3, 0.7, 0.98):
        interruption = Interruption(1 + int(share * (counted.calls - 1)))
        code = interruption.during(run)
        said = capsys.readouterr().err
        assert code == 130, (share, said)
        assert said.splitlines()[-1].startswith(f"levada {command}: interrupted; "), said
        assert "Traceback" not in said
        written = [name for name in ("out.json", "out.html") if Path(name).exists()]
        if written:
            assert f"interrupted; {', '.join(written)} was written, and nothing after it." in said
        else:
            assert ("what was finished is kept" if command in ("export", "doctor") else "nothing was written") in said
        assert not [*Path().glob(".out.*")]
        for name in written:
            Path(name).unlink()


class Interrupted(ModuleType):
    """A module that Ctrl-C meets while it is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise KeyboardInterrupt


@pytest.mark.parametrize(("rank", "told"), [("", "levada: interrupted; nothing was written.\n"), ("1", "")])
def test_ctrl_c_before_a_command_begins_is_one_sentence(rank, told, capsys, monkeypatch):
    if rank:
        monkeypatch.setenv("RANK", rank)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "levada.cli", Interrupted("levada.cli"))
        assert start() == 130
    assert capsys.readouterr().err == told
    with monkeypatch.context() as patch:
        patch.setattr("levada.cli._parser", lambda: Interrupted("argparse").Parser)
        assert start() == 130
    assert capsys.readouterr().err == told
    # While torch is imported: what an interruption leaves is said without importing it again.
    monkeypatch.setattr(levada, "commands", Interrupted("levada.commands"))
    monkeypatch.setitem(sys.modules, "levada.commands.output", None)
    assert main(["doctor", "kept"]) == 130
    assert capsys.readouterr().err == told.replace("levada:", "levada doctor:")


def test_ctrl_c_while_the_first_one_is_told_leaves_no_traceback(capsys, monkeypatch):
    monkeypatch.setattr("levada.cli.main", lambda: Interrupted("levada.cli").main)
    assert start() == 130
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_a_benchmark_without_its_traceback(here):
    Path("benchmarks").mkdir()
    Path("benchmarks/__init__.py").touch()
    Path("benchmarks/slow.py").write_text(
        'import time\nif __name__ == "__main__":\n    open("began", "w").close()\n    time.sleep(100)\n'
    )
    words = [sys.executable, "-m", "levada", "bench", "slow"]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env={**os.environ}, start_new_session=True, **options)
    deadline = time.monotonic() + 120
    while not (began := Path("began").exists()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it goes on after Ctrl-C: {process.communicate()[1]}")
    assert began, err
    assert (process.returncode, out) == (130, ""), err
    assert err == "levada bench: interrupted; what was finished is kept.\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_file_that_was_not_finished_leaves_the_old_one_and_nothing_else(error, monkeypatch):
    def fail(self: Path, target: Path) -> None:
        raise error

    Path("out.json").write_text("old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((KeyboardInterrupt, ValueError)):
        write(Path("out.json"), "new")
    assert Path("out.json").read_text() == "old"
    assert not [*Path().glob(".out*")]
