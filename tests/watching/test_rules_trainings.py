"""The rules on real trainings, watched by the real engine: planted faults are named at their block."""

import math

import pytest
import torch
from benchmarks.watch_verdicts.trainings import FAULTS, HEALTHY
from benchmarks.watch_verdicts.verdicts import judged
from torch import nn

import levada

SEED = 7  # thresholds were set on others


@pytest.mark.parametrize("name", ["mlp easy", "mlp adam dropout warm-up cosine", "mlp curriculum", "mlp scaler"])
def test_a_healthy_training_is_silent(name):
    alarms = [f for f in judged(HEALTHY[name], SEED, steps=400).findings if f.severity != "info"]
    assert alarms == []


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("rate x30: mlp adam", 330),
        ("bf16 weights: mlp", 130),
        ("cut: branch, sgd", 360),
        ("40 layers, no normalisation", 90),
        ("NaN in a weight: mlp", 255),
        ("NaN in the inputs", 260),
        ("corrupted batch: mlp", 330),
        ("dying units: mlp", 330),
    ],
)
def test_a_planted_fault_is_named_at_its_block_and_step(name, steps):
    fault = FAULTS[name]
    findings = [f for f in judged(fault.build, SEED, steps=steps).findings if f.severity != "info"]
    assert findings[0].rule in fault.rules
    assert all(f.evidence["told_at"] >= fault.step for f in findings)
    if fault.block:
        assert findings[0].where["first"] == fault.block
    if "step" in findings[0].evidence:
        assert findings[0].evidence["step"] in (fault.step, fault.step + 1)


def tanh_net(depth):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(20 if i == 0 else 64, 64), nn.Tanh()) for i in range(depth)]
    return nn.Sequential(*layers, nn.Linear(64, 3))


def watched(model, optimizer, steps):
    """Train on three blobs, and return what the watch found."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 20, generator=draw)
    with levada.watch(model, optimizer, every=10, max_overhead=math.inf) as watch:
        for _ in range(steps):
            y = torch.randint(3, (32,), generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(centres[y] + torch.randn(32, 20, generator=draw)), y).backward()
            optimizer.step()
    return watch


def test_a_loss_that_stands_while_the_gradient_is_lost_by_depth_is_a_warning_below_three_decades():
    model = tanh_net(13)
    watch = watched(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), 160)
    (finding,) = watch.findings
    assert (finding.rule, finding.severity) == ("vanishing_gradient", "warn")
    assert 2 < finding.evidence["decades"] < 3
    assert "steps the loss has gone from 1.0" in finding.claim
    assert watch.report().verdict == "warn"


def test_it_is_none_where_such_blocks_train_to_that_depth_or_steps_are_rescaled():
    for depth, kind, options in ((5, torch.optim.SGD, {"lr": 1e-5}), (13, torch.optim.Adam, {"lr": 1e-7})):
        model = tanh_net(depth)
        watch = watched(model, kind(model.parameters(), **options), 160)
        assert [f for f in watch.findings if f.rule == "vanishing_gradient"] == []
