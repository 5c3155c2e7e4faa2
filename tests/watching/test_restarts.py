"""A loss that every restart of the learning rate raises and that came back each time, and others that are up."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn

import levada
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.judged import standing_of
from levada.watching.verdict.restarts import Restarts


def follow(loss_at, steps, *, cycle=100):
    """Follow losses by step under a rate that restarts every `cycle` steps; return whether it is explained, by step."""
    restarts, losses, told = Restarts(), LossBaseline(), []
    for step in range(steps):
        loss = loss_at(step)
        losses.add(step, loss)
        restarts.see(step, loss, losses, [(at - 1, at) for at in range(cycle, step + 1, cycle)])
        told.append(restarts.explain(losses))
    return told


def cycles(heights, *, low=0.01, until=60):
    """A loss that begins at 2 and is up from the 20th to the `until`-th step of each cycle, by a height of its own."""

    def loss_at(step):
        if step < 40:
            return 2.0
        return heights[step // 100] if 20 < step % 100 < until else low

    return loss_at


def test_the_first_restart_is_no_habit_and_the_second_one_is():
    told = follow(cycles([0.01, 1.0, 1.0, 1.0]), 400)
    assert not any(told[:200])
    assert all(told[240:260])
    assert all(told[340:360])


@pytest.mark.parametrize(
    "heights", [[0.01, 0.4, 1.2], [0.01, 1.0, 1.7]], ids=["three times as high", "hardly anything left"]
)
def test_a_loss_that_goes_higher_than_before_is_not_explained(heights):
    assert not any(follow(cycles(heights), 260)[245:])


def test_a_loss_that_stays_up_for_longer_is_not_explained():
    def loss_at(step):
        return 1.0 if step > 220 else cycles([0.01, 1.0, 1.0])(step)

    told = follow(lambda step: loss_at(step), 400, cycle=100_000)  # no restart at all
    assert not any(told)
    restarts, losses = Restarts(), LossBaseline()
    for step in range(400):
        losses.add(step, loss_at(step))
        restarts.see(step, loss_at(step), losses, [(99, 100), (199, 200)][: step // 100])
        if step == 250:
            assert restarts.explain(losses)
    assert not restarts.explain(losses)


def test_a_restart_from_which_the_loss_did_not_come_back_ends_the_habit():
    def loss_at(step):
        return 1.0 if 220 < step < 330 else cycles([0.01, 1.0, 1.0, 0.01, 1.0])(step)

    told = follow(loss_at, 460)
    assert told[240]
    assert not any(told[300:])


def test_a_run_whose_loss_is_up_by_habit_is_called_healthy(monkeypatch):
    def edit(step, values, scalars, losses):
        losses[:] = [(s, 1.6 if s > 560 else loss) for s, loss in losses]

    run = Synthetic()
    run.run(30, edit)
    assert standing_of(run.judge).verdict == "unknown"
    monkeypatch.setattr(Restarts, "explain", lambda self, losses: losses is run.judge.loss)
    assert standing_of(run.judge).verdict == "healthy"


def test_the_judge_tells_it_of_every_loss_and_of_where_the_rate_rose():
    run = Synthetic()
    run.judge._rates.before_update(0, 1e-3)
    run.judge._rates.before_update(300, 1e-2)
    run.run(20)
    assert (run.judge.restarts._at, run.judge.restarts._last) == (300, run.step - run.every)


@pytest.mark.parametrize(("restart", "said"), [(240, True), (100, False), (None, False)])
def test_a_jump_behind_a_restart_says_how_long_ago_that_was_and_blames_it_for_nothing(restart, said):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 1e-3 if step == restart else 1e-4
            x = torch.randn(32, 4)
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            (loss * (30 if step == 274 else 1)).backward()
            optimizer.step()
    (found,) = [one for one in watch.findings if one.rule == "loss_spike"]
    rose = "The learning rate rose from 0.0001 to 0.001 at step 240, 34 steps before it. "
    assert (f"{rose}Nothing else that is watched moved before it" in found.claim) is said
    assert ("Nothing that is watched moved before it" in found.claim) is not said
    assert found.evidence["learning_rate"] is None
