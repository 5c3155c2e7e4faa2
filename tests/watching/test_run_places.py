"""Where `levada run` keeps its records, and that processes agree on it without getting in the script's way."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fsspec
import pytest

from levada.cli import main
from levada.commands.places import Places
from levada.runs import Run, find_runs

LOOP = """
import torch
from torch import nn

def train(net, steps=3):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()

def net():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
"""


def script(folder: Path, text: str) -> str:
    (folder / "train.py").write_text(LOOP + textwrap.dedent(text))
    return str(folder / "train.py")


def run(folder: Path, *words: str) -> int:
    return main(["run", "--quiet", *words, str(folder / "train.py")])


def test_a_record_goes_to_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "cache"))
    script(tmp_path, "train(net())\ntrain(net())\n")
    files = fsspec.filesystem("memory")
    try:
        assert run(tmp_path, "--run", "memory://places/x") == 0
        assert Run("memory://places/x").manifest.kind == "watch"
        assert Run("memory://places/x-2").manifest.kind == "watch"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "train.py"]
        assert run(tmp_path, "--run", "memory://places/x") == 2
        assert "an address that holds no run yet" in capfd.readouterr().err
    finally:
        files.rm("/places", recursive=True)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("", "--run must not be empty"),
        (" ", "must name a folder or an address"),
        ("train.py", "train.py' is a file"),
        ("train.py/x", "train.py' is a file"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, where: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path, "print('ran')\ntrain(net())\n")
    assert run(tmp_path, "--run", where) == 2
    said = capfd.readouterr()
    assert told in said.err
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="everybody may write there")
def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path, capfd: Any) -> None:
    script(tmp_path, "print('ran')\n")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert run(tmp_path, "--run", str(tmp_path / "closed")) == 2
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("words", [(), ("--run", "kept")])
def test_the_folder_is_where_the_script_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    script(tmp_path, "import os\nos.chdir('elsewhere')\ntrain(net())\n")
    assert run(tmp_path, *words) == 0
    assert find_runs(tmp_path) == [tmp_path / ("kept" if words else "runs/train-1")]


def test_a_script_that_trains_nothing_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path, "pass\n")
    assert run(tmp_path) == run(tmp_path, "--run", "a/b") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_a_process_that_comes_late_may_find_the_record_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setenv("RANK", "1")
    Places(str(tmp_path), "train")


# Several processes. Training itself must meet within 60 s: a collective of ours in between would break it.

START = """
import sys
from datetime import timedelta
import torch.distributed as dist
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
torch.manual_seed(0)
rank = dist.get_rank()
"""
END = """
dist.barrier()
sys.stdout.write(f"trained {rank}\\n")
dist.destroy_process_group()
"""


def torchrun(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    script(folder, START + textwrap.dedent(text) + END)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, *words, "train.py"], capture_output=True, text=True, cwd=folder, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "trained 0", "trained 1"]
    return done


def test_a_model_that_the_first_process_alone_trains_is_kept_beside_the_common_one(tmp_path: Path) -> None:
    text = """
    if rank == 0:
        train(nn.Linear(4, 1))
    train(nn.parallel.DistributedDataParallel(net()), 6)
    """
    words = ("-m", "--", "levada", "run", "--every", "1", "--max-overhead", "1", "--run", "kept")
    torchrun(tmp_path, text, *words)
    assert [path.name for path in find_runs(tmp_path)] == ["kept", "kept-2"]
    probe, common = Run(tmp_path / "kept"), Run(tmp_path / "kept-2")
    assert probe.ranks == (0,)
    assert common.ranks == (0, 1)
    assert common.signals(0).steps[:2] == common.signals(1).steps[:2] == (1, 2)
    assert len(probe.signals().sites) != len(common.signals().sites)


def test_a_model_that_another_process_alone_trains_has_a_record_of_its_own(tmp_path: Path) -> None:
    text = """
    import levada.commands.places as places
    places._PATIENCE["own"] = 0.5
    common = nn.parallel.DistributedDataParallel(net())
    if rank == 1:
        train(nn.Linear(4, 1), 6)
    train(common, 6)
    """
    torchrun(tmp_path, text, "-m", "levada", "run", "--every", "1", "--max-overhead", "1")
    found = find_runs(tmp_path / "runs")
    assert [path.name for path in found] == ["train-1", "train-rank-1-1"]
    assert Run(found[0]).ranks == (0, 1)
    assert Run(found[1]).ranks == (0,)
    assert Run(found[1]).signals().steps[0] == 1
