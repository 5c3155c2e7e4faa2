"""A closure runs its passes inside of `optimizer.step`: what listeners hear before the update is the same."""

from __future__ import annotations

import math

import torch
from torch import nn

import levada
from levada.watching import WATCHED


class Heard:
    def __init__(self):
        self.losses, self.weights, self.model = [], [], None

    def before_update(self, step, loss):
        self.losses.append((step, loss.item()))
        self.weights.append(self.model[0].weight.detach().clone())

    def sampled(self, sample):
        pass

    def close(self):
        pass


def train(optimizer_of, *, closure, steps=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer, heard = optimizer_of(model.parameters()), Heard()
    heard.model, x, weights = model, torch.randn(8, 4), []

    def passes():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with levada.watch(model, optimizer, every=1, max_overhead=math.inf, listeners=[heard]) as watch:
        for step in range(steps):
            weights.append(model[0].weight.detach().clone())
            if not closure:
                passes()
                optimizer.step()
            elif step % 2:
                optimizer.step(closure=passes)
            else:
                assert optimizer.step(passes) is not None
    torch.testing.assert_close(heard.weights, weights, rtol=0, atol=0)
    return watch, heard


def test_a_closure_changes_nothing():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    (mine, heard), (plain, expected) = train(sgd, closure=True), train(sgd, closure=False)
    assert heard.losses == expected.losses
    assert [step for step, _ in heard.losses] == [0, 1, 2, 3]
    for a, b in zip(mine.samples, plain.samples, strict=True):
        assert a.losses == b.losses
        for name in WATCHED:
            torch.testing.assert_close(a.values[name], b.values[name], rtol=0, atol=0, equal_nan=True)


def test_of_several_calls_of_a_closure_the_first_is_before_the_update():
    watch, heard = train(lambda p: torch.optim.LBFGS(p, max_iter=5, line_search_fn="strong_wolfe"), closure=True)
    assert [step for step, _ in heard.losses] == [0, 1, 2, 3]
    assert (watch.trace()["update_ratio"] > 0).all()


def test_the_loss_of_micro_batches_is_what_the_update_uses_the_gradient_of():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watch:
        for factor in (1.0, 3.0):
            ((0 * model(torch.ones(1, 2)).sum() + factor) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        for factor in (1.0, 3.0):
            (0 * model(torch.ones(1, 2)).sum() + factor).backward(torch.tensor(0.25))
        optimizer.step()
    assert [sample.losses for sample in watch.samples] == [((0, 2.0),), ((1, 1.0),)]
