"""Parameters that are in no optimizer: told once, and not where something else moves them."""

import math

import pytest
import torch
from torch import nn

import levada
from levada.watching import unoptimised


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(unoptimised, "UPDATES", 40)


def train(left_out, act=None, given=lambda optimizers: optimizers, steps=100, frozen=False):
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)], nn.Linear(8, 2))
    apart = [p for i in left_out for p in net[i].parameters()]
    others = [p for p in net.parameters() if not any(p is q for q in apart)]
    for p in apart:
        p.requires_grad_(not frozen)
    optimizers = [torch.optim.SGD(others, lr=0.01)]
    if act == "another":
        optimizers.append(torch.optim.SGD(apart, lr=0.01))
    with levada.watch(net, given(optimizers), every=5, max_overhead=math.inf) as watch:
        for i in range(steps):
            net.zero_grad()
            net(torch.randn(4, 8)).square().mean().backward()
            for one in optimizers if i % 10 == 0 else optimizers[:1]:
                one.step()
            if act == "by hand":
                for p in apart:
                    p.data.sub_(p.grad, alpha=0.01)
            if i == {"added later": 20, "added late": 70}.get(act):
                optimizers[0].add_param_group({"params": apart})
    return [f for f in watch.findings if f.rule == "unoptimised_parameters"]


def test_a_head_in_no_optimizer_is_warned_of_once():
    (finding,) = train([4])
    assert (finding.severity, finding.where) == ("warn", {"first": "4", "last": "4"})
    assert finding.evidence["parameters"] == ["4.weight", "4.bias"]
    assert finding.evidence["told_at"] == 40


def test_a_body_in_no_optimizer_may_be_meant():
    (finding,) = train([0, 1, 2, 3])
    assert (finding.severity, finding.where) == ("info", {"first": "0", "last": "3"})


@pytest.mark.parametrize("act", ["another", "by hand", "added later"])
def test_what_something_else_moves_is_passed_over(act):
    assert train([4], act, given=lambda optimizers: optimizers[0]) == []


def test_what_is_added_after_it_was_told_ends_it():
    (finding,) = train([4], "added late")
    assert (finding.status, finding.evidence["cleared_at"]) == ("clear", 80)


def test_two_optimizers_that_are_given_hold_them_together():
    assert train([4], "another") == []


def test_what_asks_for_no_gradient_is_passed_over():
    assert train([0, 1], frozen=True) == []
