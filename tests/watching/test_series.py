"""Losses of optimizers that take turns: one series where they are of one task, one of each where they are others."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

import levada
from levada.watching.loop.turns import Turn
from levada.watching.verdict.judged import MIXED
from levada.watching.verdict.series import LossSeries


def train(turns, steps=240, *, spike=None, scale=5.0, begin=lambda watch: None, **options):
    """Watch a generator and a discriminator, of which `turns(step)` says which steps, by its number.

    At `spike` a loss is a hundred times as large; `begin` is given the watch.
    """
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    two = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    pair = nn.ModuleDict({"generator": one, "critic": two})
    each = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.99)) for net in (one, two)]
    told = functional.binary_cross_entropy_with_logits
    with levada.watch(pair, each, every=5, max_overhead=math.inf, **options) as watch:
        begin(watch)
        for step in range(steps):
            for which in turns(step):
                each[which].zero_grad()
                fake = one(torch.randn(64, 8))
                if which == 0:
                    loss = scale * told(two(fake), torch.ones(64, 1))
                else:
                    real = 0.1 * torch.randn(64, 2) + 1
                    loss = told(two(real), torch.ones(64, 1)) + told(two(fake.detach()), torch.zeros(64, 1))
                (loss * (100 if spike == (step, which) else 1)).backward()
                each[which].step()
    return watch


PATTERNS = {
    "both": lambda step: (1, 0),
    "in turns": lambda step: (step % 2,),
    "five to one": lambda step: (1, 0) if step % 5 == 4 else (1,),
}


@pytest.mark.parametrize("turns", PATTERNS.values(), ids=PATTERNS)
def test_adversaries_are_told_apart_and_none_of_their_rises_is_a_finding(turns):
    watch = train(turns)
    assert watch.judge.losses.mixed
    assert [one for one in watch.findings if one.status == "fired"] == []
    assert watch.standing.unjudged["learning_rate_too_high"] == MIXED
    assert "loss_spike" in watch.standing.judged
    assert MIXED in str(watch.report())
    of = dict(watch.judge.losses.each)
    assert of.keys() == {1, 2}
    assert of[2].first == pytest.approx(2 * math.log(2), rel=0.1)
    assert of[1].first == pytest.approx(5 * math.log(2), rel=0.1)


def test_a_jump_of_one_of_them_is_told_with_whose_it_is():
    watch = train(PATTERNS["both"], spike=(200, 1))
    (found,) = [one for one in watch.findings if one.rule == "loss_spike"]
    # Each makes a step of its own, the critic the first of two.
    assert "The loss of optimizer 2 of 2 (Adam) jumped at step 400 from " in found.claim, found.claim
    assert found.evidence["turn"] == 2


def test_a_jump_that_is_small_beside_the_other_ones_loss_is_seen():
    losses = LossSeries()
    for step in range(400):
        losses.see(
            step,
            100.0 + 0.1 * (step % 3) if step % 2 else 3.0 if step == 360 else 1.0 + 0.01 * (step % 3),
            1 + step % 2,
        )
    assert losses.mixed
    assert not losses._of[1].spikes.is_over or losses._of[1].spikes._ended
    assert losses.spikes.is_over  # which one series of both would not have shown
    assert not losses.spikes._ended


@pytest.mark.parametrize("seed", range(8))
def test_optimizers_that_take_turns_with_one_loss_keep_one_series(seed):
    losses, draw = LossSeries(), random.Random(seed)
    for step in range(4000):
        losses.see(step, 5.0 / (1 + step / 100) * draw.lognormvariate(0, 0.5), 1 + step % 2)
    assert not losses.mixed
    assert losses.loss.steps == 4000


def test_a_rare_second_optimizer_whose_steps_fall_with_the_rest_keeps_one_series():
    losses = LossSeries()
    for step in range(1000):
        losses.see(step, math.exp(-step / 200) * (1 + 0.01 * (step % 7)), 2 if step % 10 == 9 else 1)
    assert not losses.mixed


def test_a_jump_of_another_optimizers_step_says_so_where_the_loss_is_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    adam, other = torch.optim.Adam(model.parameters(), lr=1e-3), torch.optim.SGD(model.parameters(), lr=1e-3)
    with levada.watch(model, [adam, other], every=5, max_overhead=math.inf) as watch:
        for step in range(300):
            x = torch.randn(64, 4)
            optimizer = other if step % 10 == 9 else adam
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            (loss * (50 if step == 269 else 1)).backward()
            optimizer.step()
    (found,) = [one for one in watch.findings if one.rule == "loss_spike"]
    assert "That was a step of optimizer 2 of 2 (SGD)." in found.claim
    assert watch.judge.loss.steps > 200


def test_turns_are_known_by_step_and_steps_of_all_are_none():
    first, second = object(), object()
    turn = Turn([first, second])
    for step, those in enumerate([(first,), (second,), (first, second)]):
        for one in those:
            turn.add(one)
        turn.end(step)
    assert [turn.of(step) for step in range(4)] == [1, 2, 0, None]
    for step in range(200_000):
        turn.add(first)
        turn.end(step)
    assert len(turn._of) <= 2**17
    assert turn.of(199_999) == 1
