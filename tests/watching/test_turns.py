"""Optimizers that take turns, each after a backward pass of its own: every step has its own loss and gradients."""

import math

import pytest
import torch
from torch import nn

import levada
from levada.watching.verdict.judged import standing_of
from levada.watching.verdict.resting import Resting


class Pair(nn.Module):
    """Two networks of one training, which calls each of them and never the whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        self.second = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)), nn.Linear(4, 1))


def norm(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item()


def train(pair, optimizers, every, steps=40, toggled=False, shared=False):
    """Adversaries: the second network learns from what the first gives, then the first from what the second says."""
    first, second = pair.first, pair.second
    truth = []
    with levada.watch(pair, optimizers, every=every, max_overhead=math.inf) as watch:
        for _ in range(steps):
            x = torch.randn(8, 4)
            for learner, other, optimizer in ((second, first, optimizers[1]), (first, second, optimizers[0])):
                if toggled:
                    other.requires_grad_(False)
                made = first(x) if learner is first or shared else first(x).detach()
                loss = second(made).square().mean() if learner is first else (second(made) - 1).square().mean()
                optimizer.zero_grad()
                loss.backward()
                truth.append((loss.item(), norm(learner)))
                optimizer.step()
                other.requires_grad_(True)
    return watch, truth


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("how", ["plain", "toggled", "shared"])
def test_each_turn_is_a_step_with_its_own_loss_and_gradient(how, every):
    pair = Pair()
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.05) for half in (pair.first, pair.second)]
    watch, truth = train(pair, optimizers, every, toggled=how == "toggled", shared=how == "shared")
    assert watch.steps == len(truth) == 80
    losses = {step: loss for sample in watch.samples for step, loss in sample.losses}
    assert losses == {step: pytest.approx(truth[step][0], rel=1e-6) for step in losses}
    assert len(losses) > 60
    assert {sample.step % 2 for sample in watch.samples} == {0, 1}
    for sample in watch.samples:
        assert sample.scalars["gradient_norm"] == pytest.approx(truth[sample.step][1], rel=1e-5)
        gradient = dict(zip((s.name for s in watch.sites), sample.values["weight_gradient_rms"].tolist(), strict=True))
        whose = "first" if sample.step % 2 else "second"
        for name, value in gradient.items():
            if name.startswith(whose):
                assert value > 0
            elif sample.step:  # what lies there is left from before, or not meant for it
                assert not value > 0
    assert not [f for f in watch.findings if f.rule == "loss_spike"]


def test_an_optimizer_that_never_steps_has_the_gradient_that_lies_there():
    """So that weights which get a gradient and are not moved can be told from those whose turn comes."""
    pair = Pair()
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.05) for half in (pair.first, pair.second)]
    with levada.watch(pair, optimizers, every=1, max_overhead=math.inf) as watch:
        for _ in range(6):
            optimizers[1].zero_grad()  # what the other gets piles up
            pair.second(pair.first(torch.randn(8, 4))).square().mean().backward()
            optimizers[1].step()
    for sample in watch.samples:
        gradient, update = sample.values["weight_gradient_rms"], sample.values["update_ratio"]
        assert (gradient > 0).all()
        assert [bool(value > 0) for value in update] == [site.name.startswith("second") for site in watch.sites]


def test_gradients_are_looked_at_of_few_parameters_of_each_optimizer():
    pair = Pair()
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.05) for half in (pair.first, pair.second)]
    watch, _ = train(pair, optimizers, 1000, steps=3)
    assert len(watch._engine.losses.markers.parameters) == 8


def take_turns(turns, steps, every):
    """One network and one loss, whose gradients reach all of it; the two halves take turns to be moved."""
    pair = Pair()
    halves = (pair.first, pair.second)
    optimizers = [torch.optim.Adam(half.parameters(), lr=1e-3) for half in halves]
    with levada.watch(pair, optimizers, every=every, max_overhead=math.inf) as watch:
        for step in range(steps):
            x = torch.randn(8, 4)
            for each in optimizers:
                each.zero_grad()
            (pair.second(pair.first(x)) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizers[turns(step)].step()
    return watch


@pytest.mark.parametrize("length", [1, 15])
def test_an_update_that_was_not_made_is_not_measured_and_none_that_is_lost(length):
    watch = take_turns(lambda step: step // length % 2, 60, 3)
    for sample in watch.samples:
        whose = ("first", "second")[sample.step // length % 2]
        for site, gradient, update in zip(
            watch.sites, sample.values["weight_gradient_rms"], sample.values["update_ratio"], strict=True
        ):
            assert update > 0 if site.name.startswith(whose) else update.isnan()
            assert gradient > 0
    assert watch.judge is not None
    assert [f for f in watch.judge.history if f.rule == "lost_update"] == []


def test_an_optimizer_that_never_steps_is_told_as_what_no_stepping_one_holds():
    watch = take_turns(lambda step: 1, 240, 40)
    told = {f.rule: f for f in watch.findings}
    assert [*told] == ["unoptimised_parameters"]
    assert told["unoptimised_parameters"].evidence["number"] == 6
    assert told["unoptimised_parameters"].where == {"first": "first.0", "last": "first.2"}


def hush(stops, steps=330, lengths=(1, 1), freezes=False):
    """Train two halves with an optimizer each; the first one makes no step from `stops` on, though gradients come."""
    pair = Pair()
    halves = (pair.first, pair.second)
    optimizers = [torch.optim.SGD(half.parameters(), lr=1e-2) for half in halves]
    with levada.watch(pair, optimizers, every=10, max_overhead=math.inf) as watch:
        for step in range(steps):
            x = torch.randn(8, 4)
            for each in optimizers:
                each.zero_grad()
            if freezes and step == stops:
                pair.first.requires_grad_(False)
            (pair.second(pair.first(x)) - x.sum(1, keepdim=True)).square().mean().backward()
            for i, each in enumerate(optimizers):
                if step % lengths[i] == 0 and (i or step < stops):
                    each.step()
    assert watch.judge is not None
    return watch, standing_of(watch.judge)


def test_an_optimizer_that_steps_no_more_is_told_and_the_verdict_is_open():
    watch, standing = hush(100, 210)
    assert watch.findings == []
    assert standing.verdict == "unknown"
    told = "optimizer 1 of 2 (SGD) has made no step since step 99, for longer than it ever rested before"
    assert told in standing.unjudged["unoptimised_parameters"]
    watch, standing = hush(100, 390)
    (finding,) = watch.findings
    assert (finding.rule, finding.severity, finding.evidence["number"]) == ("unoptimised_parameters", "info", 6)
    assert standing.verdict == "unknown"  # also where that was told


@pytest.mark.parametrize(
    "options", [{"stops": 999, "steps": 398, "lengths": (100, 1)}, {"stops": 100, "freezes": True}]
)
def test_a_turn_and_a_freeze_leave_the_verdict(options):
    _, standing = hush(**options)
    assert "unoptimised_parameters" not in standing.waiting


@pytest.mark.parametrize("clears", [True, False])
def test_gradients_that_lie_there_from_before_are_none_that_come(clears):
    """A network is trained to keep what it was given, and then only the head on what it gives."""
    pair = Pair()
    back = nn.Linear(4, 4)
    whole = nn.ModuleDict({"pair": pair, "back": back})
    optimizers = [
        torch.optim.SGD([*pair.first.parameters(), *back.parameters()], lr=1e-2),
        torch.optim.SGD(pair.second.parameters(), lr=1e-2),
    ]
    with levada.watch(whole, optimizers, every=10, max_overhead=math.inf) as watch:
        for step in range(300):
            x = torch.randn(8, 4)
            late = step >= 20
            if clears or not late:
                optimizers[0].zero_grad()
            optimizers[1].zero_grad()
            with torch.set_grad_enabled(not late):
                made = pair.first(x)
            loss = (pair.second(made.detach()) - 1).square().mean()
            (loss if late else loss + (back(made) - x).square().mean()).backward()
            for each in optimizers[late:]:
                each.step()
    assert "unoptimised_parameters" not in [f.rule for f in watch.findings]
    assert "unoptimised_parameters" not in standing_of(watch.judge).unjudged


def test_an_optimizer_that_is_slow_from_the_start_or_never_stepped_does_not_rest():
    resting, times = Resting(), {"each": 0, "slow": 0, "never": 0}
    for step in range(700):
        resting.before_update(step, [*times], times.get)
        assert resting.since == {}
        times["each"] += 1
        times["slow"] += step % 200 == 199
