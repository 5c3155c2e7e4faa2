"""Steps many times as large as the weights are told before a hundred losses are known; a small draw is not blamed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import levada

STEPS = 40


class Normed(nn.Module):
    """A linear map behind a norm whose mean square overflows where the signal is too large: then it gives zeros."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(16), nn.Linear(16, 16, bias=False)

    def forward(self, x):
        return x + self.linear(self.norm(x))


def train(model, optimizer, loss_of, steps=STEPS, *, later=None):
    """Watch a training; `later` is the learning rate behind the first step."""
    torch.manual_seed(1)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model, torch.randn(32, 16)).backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = later or optimizer.param_groups[0]["lr"]
    return watch


def classes(model, x):
    return nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))


def normed(small=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 16), *(Normed() for _ in range(4)), nn.RMSNorm(16), nn.Linear(16, 4, bias=False)
    )
    for p in model.parameters():
        if p.dim() > 1:
            p.data.mul_(small)
    return model


def of_rate(watch):
    return [one for one in watch.findings if one.rule == "learning_rate_too_high"]


def test_a_first_step_that_leaves_only_zeros_is_warned_of_within_forty_steps():
    model = normed()
    watch = train(model, torch.optim.Adam(model.parameters(), lr=1e9), classes, later=1e-3)
    (found,) = of_rate(watch)
    assert (found.severity, found.status) == ("warn", "fired")
    assert all(math.isfinite(loss) for sample in watch.samples for _, loss in sample.losses)  # nothing overflowed there
    assert "of themselves, which leaves nothing of what they were drawn for: the loss is" in found.claim
    assert "blocks is exactly zero" in found.claim
    assert watch.standing.verdict == "warn"


def test_a_first_step_that_throws_the_loss_up_is_warned_of_within_forty_steps():
    model = normed()
    watch = train(model, torch.optim.Adam(model.parameters(), lr=1e6), classes)
    (found,) = of_rate(watch)
    assert (found.severity, found.status) == ("warn", "fired")
    assert found.evidence["longest"] > 1e3
    assert found.remedies


@pytest.mark.parametrize("small", [1e-4, 1e-6])
def test_weights_that_are_drawn_near_zero_are_moved_as_far_and_not_warned_of(small):
    model = normed(small)
    watch = train(model, torch.optim.Adam(model.parameters(), lr=3e-3), classes, steps=200)
    assert float(watch.judge.habits.longest.nanmedian()) > 10
    assert [one.severity for one in watch.judge.history] in ([], ["info"], ["info", "info"])
    assert not [one for one in watch.findings if one.status == "fired"]
    assert watch.standing.verdict == "healthy"
