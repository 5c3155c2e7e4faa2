"""The program that builds, checks and times all on a GPU, gone through without one."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks import gpu

ROOT = Path(__file__).parents[1]


def run(*words, **more):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **more)


def given(tmp_path, **more):
    return Namespace(**{"device": "cuda", "quick": False, "most": None, "steps": [], "output": tmp_path} | more)


@pytest.mark.timeout(900)
def test_without_a_gpu_it_goes_through_the_steps(tmp_path):
    pytest.importorskip("triton")
    done = run("--device", "cpu", "--quick", "--output", tmp_path / "found")
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert [line for line in said.splitlines() if line.startswith("== ") and "done" not in line] == [
        "== registers",
        "== tests",
        "== ops",
        "== training_step",
    ]
    assert f"torch {torch.__version__}" in said
    rows = [json.loads(line) for line in (tmp_path / "found" / "registers.jsonl").read_text().splitlines()]
    assert {row["capability"] for row in rows} == {90}
    assert "write_streams both" in said
    assert "memory, 2 layers of 64" in said


def test_nothing_is_timed_where_tests_fail(tmp_path, monkeypatch, capsys):
    commands = {name: lambda options, name=name: [name] for name in gpu.STEPS}
    ran = []

    def ended(command, **more):
        ran.extend(command)
        return subprocess.CompletedProcess(command, int(command == ["tests"]))

    monkeypatch.setattr(gpu, "STEPS", commands)
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=ended))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--output", str(tmp_path)])
    assert gpu.main() == 1
    assert ran == ["registers", "tests"]
    assert "nothing is timed" in capsys.readouterr().out


def test_on_a_gpu_it_runs_its_tests_and_draws_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    (tmp_path / "ops.jsonl").touch()
    found = dict(gpu.commands(given(tmp_path, most=2)))
    assert list(found) == ["registers", "tests", "ops", "training_step", "figure"]
    assert {"tests/gpu", "tests/ops/test_scan.py"} < {*found["tests"]}
    assert found["ops"][-2:] == ["--most", "2"]
    assert found["registers"][found["registers"].index("--capability") + 1] == "90"
    assert list(dict(gpu.commands(given(tmp_path, steps=["ops"])))) == ["ops"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_it_says_what_is_wrong(tmp_path):
    said = run("--output", tmp_path).stderr
    assert "PyTorch finds no GPU here" in said
    assert "no step speed; there are registers" in run("speed", "--device", "cpu").stderr
