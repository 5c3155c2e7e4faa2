"""What a finding says was ruled out: true of the model at hand, and left out where it was not tested."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import levada
from levada.diagnose.check import examine
from levada.diagnose.diagnostics import DIAGNOSTICS
from levada.diagnose.exclusion import EXCLUSIONS, ruled_out
from levada.diagnose.facts import facts_of
from levada.probe.trace import Trace

DIM = 8
X = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 10


def chain(depth, act=nn.ReLU, variance=1.0):
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(64, 64), act())], nn.Linear(64, 10))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, (variance / 64) ** 0.5)
    return net


def streams(connection, depth, **options):
    torch.manual_seed(0)

    def branch(dim):
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    stack = levada.Stack(branch, connection, dim=DIM, depth=depth, **options)
    return nn.Sequential(nn.Linear(64, DIM), stack, nn.LayerNorm(DIM), nn.Linear(DIM, 10))


def mixed():
    net = streams(levada.HyperConnection, 30, dynamic=False, head="mean")
    for name, p in net.named_parameters():
        if name.endswith("static_mix"):
            p.data *= 1.2
    return net


def alike():
    net = streams(levada.ManifoldHyperConnection, 6)
    with torch.no_grad():
        for one in net.modules():
            if hasattr(one, "projection"):
                one.projection.zero_()
                pair = torch.tensor([-math.log(one.streams - 1), 0.0])
                one.bias[: 2 * one.streams] = pair.repeat_interleave(one.streams)
    return net


class Evaluated(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
        self.net[1].running_var.fill_(100.0)
        self.eval()

    def forward(self, x):
        return self.net(x)


# Rule -> a model with that fault, how it is checked, and what must have been excluded.
CASES = {
    "wrong_loss": (lambda: nn.Linear(64, 1), X[:, 0], {"loss": lambda o, t: ((o - t) ** 2).mean()}, "Not the model"),
    "learning_rate_too_low": (lambda: chain(2), Y, {"optimizer": "SGD", "lr": 1e-9}, "Not a minimum"),
    "shattered_gradient": (lambda: chain(20, nn.Tanh, 9.0), Y, {"lr": 1e-4}, "Not normalisation or a skip"),
    "unstable_mixing": (mixed, Y, {}, "Not cancelled by the branches"),
    "stream_collapse": (alike, Y, {}, "Not a head that parts them"),
    "train_mode": (Evaluated, Y, {}, "Not without effect"),
}


@pytest.mark.parametrize("rule", CASES)
def test_what_was_excluded_is_said(rule):
    build, targets, how, sentence = CASES[rule]
    report = levada.check(build(), (X, targets), **how)
    (found,) = [f for f in report.findings if f.rule == rule and f.severity != "info"]
    assert any(one.startswith(sentence) for one in found.ruled_out), found.ruled_out


def test_every_rule_says_what_it_excluded():
    assert set(EXCLUSIONS) == set(DIAGNOSTICS)


def sick():
    """A chain whose gradient dies, its finding, and what was measured."""
    report, trace = examine(chain(40, nn.Sigmoid), (X, Y), optimizer="SGD", lr=0.1)
    return next(f for f in report.findings if f.rule == "vanishing_gradient"), trace


def without(trace, signal="", **changes):
    values = {name: torch.full_like(v, torch.nan) if name == signal else v for name, v in trace.values.items()}
    return Trace(trace.sites, trace.steps, values, {**trace.context, "facts": replace(facts_of(trace), **changes)})


def test_what_was_not_tested_is_not_said():
    found, trace = sick()
    told = ruled_out(found, trace)
    assert {one.split(":")[0] for one in told} == {
        "Not saturation",
        "Not dead units",
        "Not a cut in the graph",
        "Not the loss, nor one draw",
        "Not underflow",
    }
    assert not any("saturation" in one for one in ruled_out(found, without(trace, "saturated_fraction")))
    assert not any("cut" in one for one in ruled_out(found, without(trace, untested={"frozen_layers": "why"})))
    assert not any("underflow" in one for one in ruled_out(found, without(trace, cotangent_log10=None)))
    assert ruled_out(replace(found, severity="info"), trace) == ()
    assert ruled_out(replace(found, rule="another"), trace) == ()


def test_what_is_the_case_is_not_excluded():
    found, trace = sick()
    saturated = {**trace.values, "saturated_fraction": torch.ones_like(trace["saturated_fraction"])}
    told = ruled_out(found, Trace(trace.sites, trace.steps, saturated, trace.context))
    assert not any("saturation" in one for one in told)


def test_what_shows_a_finding_wrong_freezes_what_its_consequence_names():
    found, _ = sick()
    span = found.consequence.partition("the weights of ")[2].partition(" as they are")[0]
    assert " to " in span
    assert f"once with {span} frozen" in found.falsify
