"""What the first process tells of a NaN that another one met before it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import levada
from levada.runs import Run
from levada.runs.folders import rank_folder
from levada.runs.rank_log import RankLog
from levada.watching.verdict import elsewhere


@pytest.fixture
def several(monkeypatch):
    monkeypatch.setattr(elsewhere, "is_one_of_several", lambda: True)
    monkeypatch.setattr(elsewhere, "PATIENCE", 0.0)


def train(run, bad, *, met=None):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with levada.watch(net, optimizer, run=run) as watch:
        for step in range(bad + 1):
            if step == bad:
                for parameter in net.parameters():
                    nn.init.constant_(parameter, math.nan)
            if step == met:
                other = {"rule": "numerical_overflow", "severity": "error", "status": "fired", "where": {}}
                claim = "The loss of step 4 is the first that is not finite, on rank 1: the argument input holds NaN."
                evidence = {"step": 4, "tensor": "inputs", "seen_at": 4, "rank": 1, "told_at": 4}
                log = RankLog(rank_folder(watch.run, 1))
                log.append("finding", step=4, claim=claim, evidence=evidence, **other)
                log.close()
            optimizer.zero_grad()
            net(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
    return watch


def test_the_first_process_tells_what_another_met_at_an_earlier_step(several, tmp_path):
    (finding,) = train(tmp_path / "run", 5, met=4).findings
    assert finding.claim.startswith("The loss of step 4 is the first that is not finite, on rank 1: the argument input")
    assert "What followed: the loss of step 5 is the first that is not finite" in finding.claim
    assert (finding.evidence["step"], finding.evidence["rank"], finding.evidence["seen_at"]) == (4, 1, 5)
    (event,) = Run(tmp_path / "run").events("finding")
    assert event["claim"] == finding.claim


@pytest.mark.parametrize(("bad", "met"), [(4, 4), (4, None)], ids=["at the same step", "nobody"])
def test_what_no_other_met_before_it_is_its_own(several, tmp_path, bad, met):
    (finding,) = train(tmp_path / "run", bad, met=met).findings
    assert finding.evidence["rank"] == 0
    assert "What followed" not in finding.claim


@pytest.mark.parametrize("run", [True, False])
def test_without_a_folder_it_says_that_it_knows_of_itself_alone(several, tmp_path, run):
    (finding,) = train(tmp_path / "run" if run else None, 4).findings
    assert ("what this process alone has seen" in finding.claim) is not run


def test_a_single_process_says_nothing_of_others():
    (finding,) = train(None, 4).findings
    assert "process" not in finding.claim
