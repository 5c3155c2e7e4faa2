"""`levada fix`: exit codes, the patch, and one sentence for what cannot be used."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from levada.cli import main
from levada.runs import Run
from levada.targets import load

TARGETS = """
import torch
from torch import nn


def sick():
    torch.manual_seed(3)
    layers = [m for _ in range(16) for m in (nn.Linear(16, 16), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(16, 2))


def healthy():
    print("building")
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def useless():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return (x[:, :2] * 0 + 1e-30 * self.bias)
    return Constant()


def batch():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(32) % 2
    return torch.randn(32, 16, generator=generator) + 2.0 * labels[:, None], labels


def negated(outputs, targets):
    return -nn.functional.cross_entropy(outputs, targets)


def inputs():
    return torch.randn(32, 16)


def number():
    return 3
"""
HOW = ("--batch", "nets.py:batch", "--optimizer", "SGD", "--lr", "0.05", "--steps", "50")


@pytest.fixture
def targets(tmp_path, monkeypatch):
    file = tmp_path / "nets.py"
    file.write_text(TARGETS)
    monkeypatch.chdir(tmp_path)
    return file


def test_the_patch_applied_by_git_gives_the_verified_model(targets, capsys, tmp_path):
    files = ("--out", "out.patch", "--json", "out.json", "--html", "out.html", "--run", "kept")
    code = main(["fix", "nets.py:sick", *HOW, *files])
    out = capsys.readouterr()
    assert code == 0, out
    told = json.loads((tmp_path / "out.json").read_text())
    assert (told["outcome"], told["model"], told["before"]["verdict"]) == ("repaired", "nets.py:sick", "error")
    assert told["remedy"] == told["trials"][0]["name"]
    assert told["trials"][0]["low"] > 0
    assert any(r["verified"] for f in told["before"]["findings"] for r in f["remedies"])
    assert told["remedy"] in out.out
    assert "--- a/nets.py" in out.out
    assert "<html" in (tmp_path / "out.html").read_text()
    # Both checks are runs, each with its own verdict, so that a page can show them beside each other.
    kept = {run.path.name: run for run in map(Run, sorted((tmp_path / "kept").iterdir()))}
    assert list(kept) == ["after", "before"]
    for side, run in kept.items():
        assert run.manifest.name == f"nets.py:sick, {side}"
        (event,) = (one for one in run.events() if one["type"] == "report")
        assert event["report"] == told[side]
    assert told["after"]["verdict"] != told["before"]["verdict"]
    names = {"model": load("nets.py:sick")()}
    exec(told["patch"], names)
    subprocess.run(["git", "apply", "out.patch"], check=True)
    fresh = {}
    exec(targets.read_text(), fresh)
    mine, theirs = fresh["sick"]().state_dict(), names["model"].state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    before = load("nets.py:sick")().state_dict()
    assert list(mine) != list(before) or any(not torch.equal(mine[key], before[key]) for key in mine)


def test_the_patch_of_a_loss_applied_by_git_gives_the_verified_loss(targets, capsys, tmp_path):
    code = main(["fix", "nets.py:healthy", *HOW, "--loss", "nets.py:negated", "--out", "out.patch"])
    out = capsys.readouterr()
    assert code == 0, out
    assert "repaired: loss.sign takes the loss from " in out.out
    assert "Found: wrong_loss (warn)" in out.out
    assert "those of one measure: the loss with its sign turned" in " ".join(out.out.split())
    subprocess.run(["git", "apply", "out.patch"], check=True)
    fresh = {}
    exec(targets.read_text(), fresh)
    outputs, labels = torch.randn(32, 2), torch.arange(32) % 2
    assert torch.equal(fresh["negated"](outputs, labels), torch.nn.functional.cross_entropy(outputs, labels))


def test_a_healthy_model_exits_with_0_and_json_is_alone(targets, capsys, tmp_path):
    code = main(["fix", "nets.py:healthy", *HOW, "--json", "-", "--out", "out.patch"])
    out = capsys.readouterr()
    assert code == 0
    told = json.loads(out.out)
    assert (told["outcome"], told["patch"], told["diff"], told["after"]) == ("healthy", "", None, None)
    assert "building" in out.err
    assert not (tmp_path / "out.patch").exists()


def test_where_nothing_was_repaired_one_check_is_kept(targets, capsys, tmp_path):
    assert main(["fix", "nets.py:healthy", *HOW, "--run", "kept"]) == 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["before"]
    assert main(["fix", "nets.py:healthy", *HOW, "--run", "kept"]) == 2
    assert "--run must name a folder that does not exist yet" in capsys.readouterr().err


def test_what_nothing_repairs_exits_with_1(targets, capsys):
    assert main(["fix", "nets.py:useless", *HOW]) == 1
    assert "Nothing was tried: no remedy answers what was found" in capsys.readouterr().out
    assert main(["fix", "nets.py:useless", *HOW, "--fail-on", "never"]) == 0


def test_too_small_a_budget_exits_with_3(targets, capsys):
    assert main(["fix", "nets.py:sick", *HOW, "--budget", "0.01"]) == 3
    assert "budget" in capsys.readouterr().out


def test_what_is_no_change_to_the_model_is_written_as_code(targets, capsys, tmp_path):
    how = ("--batch", "nets.py:batch", "--optimizer", "SGD", "--lr", "1e-7", "--steps", "50", "--out", "out.patch")
    assert main(["fix", "nets.py:healthy", *how]) == 0
    assert 'group["lr"] *=' in (tmp_path / "out.patch").read_text()


UNUSABLE = {
    "no file": (["nowhere.py:build"], "no file 'nowhere.py'"),
    "no model": (["nets.py:number", "--batch", "nets.py:batch"], "nets.py:number gave int"),
    "no targets": (["nets.py:healthy", "--batch", "nets.py:inputs"], "must hold targets"),
    "no batch": (["nets.py:healthy"], "must hold targets"),
    "trials": (["nets.py:healthy", "--batch", "nets.py:batch", "--trials", "1"], "trials must be"),
    "steps": (["nets.py:healthy", "--batch", "nets.py:batch", "--steps", "1"], "steps must be"),
    "budget": (["nets.py:healthy", "--batch", "nets.py:batch", "--budget", "nan"], "budget must be"),
    "rate": (["nets.py:healthy", "--batch", "nets.py:batch", "--lr", "0"], "lr must be"),
    "nowhere to write": (["nets.py:healthy", "--out", "no/such/x.patch"], "--out"),
    "a folder": (["nets.py:healthy", "--out", "."], "--out"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(case, targets, capsys):
    words, said = UNUSABLE[case]
    assert main(["fix", *words]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert said in out.err
    assert len(out.err.strip().splitlines()) <= 2  # "building", printed by the user's code
    assert "Traceback" not in out.err
    assert "check: " not in out.err


def test_remedies_are_listed(capsys):
    assert main(["list", "remedies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 15
    assert all(line.rstrip().endswith(".") for line in lines)
