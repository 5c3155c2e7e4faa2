"""Gradients that are lost over depth too unevenly for a factor per block, and losses that stand where they began."""

import math
from itertools import pairwise

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic

import levada
from levada.watching.verdict.baseline import LossBaseline

DECADES = (-6.2, -6.1, -6.0, -3.0, 0.0, 0.0, 0.0, 0.0)


def falling(decades, loss=None, skip=()):
    """Multiply the blocks' gradients; the loss is that of a function of the step."""

    def edit(step, values, scalars, losses):
        if step not in skip:
            values["gradient_rms"] *= 10 ** torch.tensor(decades, dtype=torch.float64)
        if loss is not None:
            losses[:] = [(at, loss(at)) for at, _ in losses]

    return edit


def standing(step):
    """Chance, after the first steps have found how often each class comes."""
    return 2.83 + 0.6 * math.exp(-step / 5) + 0.01 * math.sin(step)


def test_decades_that_are_lost_unevenly_on_each_sample_are_told_where_the_loss_stands():
    run = Synthetic()
    (finding,) = run.run(12, falling(DECADES, standing))
    assert (finding.rule, finding.severity, finding.where) == (
        "vanishing_gradient",
        "warn",
        {"first": "layers.0", "last": "layers.4"},
    )
    assert "by 10^6.2 or more on each of the last 4 samples, and the loss" in finding.claim
    assert min(finding.evidence["decades_by_sample"]) > 5.5
    assert len(finding.evidence["decades_by_block"]) == 4


@pytest.mark.parametrize(
    ("decades", "loss", "skip"),
    [
        (DECADES, None, ()),  # it falls
        (DECADES, lambda step: 0.01 + 2.3 * math.exp(-step / 5), ()),  # it is at rest
        (DECADES, standing, range(0, 400, 80)),  # now and then
        ((0.0, 0.0, -6.0, -3.0, 0.0, 0.0, 0.0, 0.0), standing, ()),  # two blocks are a place
    ],
)
def test_they_are_not_where_the_loss_falls_or_rests_or_not_on_each_sample_or_at_two_blocks(decades, loss, skip):
    run = Synthetic()
    run.run(20, falling(decades, loss, skip))
    assert [f for f in run.judge.findings if f.rule == "vanishing_gradient" and f.severity != "info"] == []


def test_a_first_loss_that_its_batch_made_high_is_no_fall():
    high, low = LossBaseline(), LossBaseline()
    for step in range(200):
        one = 1.39 + 0.02 * math.sin(2.3 * step)
        high.add(step, 1.455 if step == 0 else one)
        low.add(step, 3.0 if step == 0 else one)
    assert high.learned > 0.0
    assert (high.fell, low.fell) == (False, True)


@pytest.mark.parametrize("depth", [6, 30])
def test_sigmoid_layers_that_stand_still_are_an_error_at_any_depth(depth):
    torch.manual_seed(1)
    widths = [16, *[32] * (depth + 1)]
    layers = [m for a, b in pairwise(widths) for m in (torch.nn.Linear(a, b), torch.nn.Sigmoid())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4096, 16)
    y = (x[:, :4] + x[:, 4:8]).argmax(1)
    with levada.watch(model, optimizer, every=20, max_overhead=math.inf) as watch:
        for _ in range(200):
            i = torch.randint(0, 4096, (64,))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[i]), y[i]).backward()
            optimizer.step()
    assert [(f.rule, f.severity) for f in watch.findings] == [("vanishing_gradient", "error")]
