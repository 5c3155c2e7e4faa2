"""The loss between samples: a jump asks for some, and the end judges those that no sample brought."""

import itertools
import math

import pytest
import torch
from torch import nn

import levada
from levada.watching.loop.overhead import Cadence
from levada.watching.verdict.rise import Rates


def follow(cadence, steps, *, ask=(), content=(), distance=None, seconds=1.0, own=0.5):
    """Go through steps of so many seconds; return those that were sampled."""
    sampled = []
    for step in range(steps):
        if step in ask:
            cadence.ask(step)
        if step in content:
            cadence.content()
        cadence.count(due := cadence.due(step), own=own * due, seconds=seconds + own * due)
        if due:
            sampled.append(step)
            cadence.plan(step, distance)
    return sampled


SOON = [1, 3, 7, 15, 31, 63, 127]


def test_a_step_that_asks_is_followed_soon_and_for_long():
    plain = follow(Cadence(1000, 0.01), 1000)
    asked = follow(Cadence(1000, 0.01), 1000, ask=[300, 301, 320])
    assert plain == [0]
    assert asked == [0, *(300 + after for after in SOON)], "asked again before all are there, it hears nothing"


def test_it_is_heard_twice_whatever_it_costs_and_then_if_it_is_paid_for():
    asked = [300, 500, 700]
    dear = follow(Cadence(10_000, 0.01), 900, ask=asked)
    assert dear == [0, *(300 + after for after in SOON), *(500 + after for after in SOON)]
    cheap = follow(Cadence(10_000, 0.01), 900, ask=asked, own=1e-6)
    assert cheap == [0, *(at + after for at in asked for after in SOON)]


def test_what_is_asked_for_ends_when_nothing_waits_for_it_and_is_paid_for_by_what_follows():
    assert follow(Cadence(1000, 0.01), 1000, ask=[300], content=[308]) == [0, 301, 303, 307]
    usual, asked = (follow(Cadence(50, 0.01), 4000, ask=ask) for ask in ([], [300]))
    assert abs(len(usual) - len(asked)) <= 2, "seven more are paid for by fewer later"


def test_of_several_processes_none_asks_for_itself_and_what_it_asks_for_is_kept_for_the_others():
    cadence = Cadence(100, 0.01)
    assert follow(cadence, 400, ask=[150], content=[260], distance=100) == [0, 100, 200, 300]
    assert (cadence.wish(), cadence.wish()) == (True, False)
    assert [step for step in range(400) if cadence.meets(step)] == [308], "eight steps after the last sample"


def test_what_all_processes_ask_for_is_sampled_twice_however_much_is_paid_for_and_not_ended_by_one():
    cadence, sampled = Cadence(1000, 1e9), []
    for step in range(900):
        if step in (8, 200, 500):
            cadence.ask(step, by_all=True)
        cadence.content()
        cadence.count(due := cadence.due(step), own=1e-9, seconds=1.0)
        if due:
            sampled.append(step)
            cadence.plan(step, 1000)
    assert sampled == [0, *(8 + after for after in SOON), *(200 + after for after in SOON)]


def train(levels, *, every=20, rate=None, run=None):
    """Train on losses that are given: nothing else moves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with levada.watch(model, optimizer, every=every, max_overhead=1e-9, run=run) as watch:
        for step, level in enumerate(levels):
            for group in optimizer.param_groups:
                group["lr"] = rate(step) if rate else 1e-3
            optimizer.zero_grad()
            (level + 1e-3 * model(torch.randn(3, 2)).square().mean()).backward()
            optimizer.step()
    return watch


def spike_of(watch):
    return next(finding for finding in watch.findings if finding.rule == "loss_spike")


def test_a_jump_is_sampled_at_once_and_found_before_the_end():
    watch = train([1.0] * 60 + [10.0] * 190, every=5)
    assert [step for step in (sample.step for sample in watch.samples) if step > 59] == [60 + n for n in SOON]
    finding = spike_of(watch)
    assert (finding.evidence["step"], finding.evidence["told_at"]) == (60, 61)
    assert watch.standing.verdict == "warn"


def test_losses_that_no_sample_brought_are_judged_at_the_end():
    watch = train([1.0] * 60 + [10.0] * 190, every=50)
    early = [sample.step for sample in watch.samples if sample.step <= 60]
    assert early == [0, 50]
    quiet = train([1.0] * 250, every=50)
    assert not [finding for finding in quiet.findings if finding.status == "fired"]


def test_the_end_tells_a_jump_that_came_behind_the_last_sample_once():
    levels = iter([1.0] * 60 + [10.0] * 150)
    watch = train(itertools.islice(levels, 40), every=39)
    judge, told = watch.judge, len(watch.findings)
    ended = [(step, torch.tensor(level)) for step, level in enumerate(levels, 40)]
    watch.ended_losses = lambda: ended
    judge.close()
    judge.close()
    (finding,) = watch.findings[told:]
    assert finding.status == "fired"
    assert finding.severity == "warn"
    assert "It did not come back" in finding.claim
    assert finding.evidence["told_at"] == 209
    assert judge.loss.steps == 210, "each loss once"


def test_what_was_back_before_the_end_is_over():
    watch = train([1.0] * 60 + [10.0] * 6 + [1.0] * 30, every=59)
    watch.judge.close()
    assert spike_of(watch).status == "clear"


@pytest.mark.parametrize("levels", [[0.01 * 1.02**step for step in range(250)]])
def test_a_loss_that_climbs_tenfold_and_stays_is_not_called_healthy(levels):
    watch = train([1.0] * 20 + levels)
    assert watch.standing.verdict != "healthy"
    assert watch.standing.unjudged.get("loss_spike", "").startswith("the loss is ")


def test_after_a_loss_that_is_not_finite_no_more_samples_are_asked_for():
    watch = train([1.0] * 30 + [math.nan] * 30)
    told = watch.standing
    assert told.verdict == "error"
    assert "needed" not in told.counted
    assert "the numbers are not finite from step 30 on" in told.reasons


def test_a_jump_asks_at_its_own_step_alone():
    assert train([1.0] * 61 + [10.0], every=5).judge.asks
    assert not train([1.0] * 61 + [10.0, math.nan], every=5).judge.asks


def test_a_rise_of_the_rate_is_known_by_its_step_though_no_sample_is_near():
    rates = Rates()
    rates.sampled(0, 1.0)
    for step in range(40):
        rates.before_update(step, 1.0 / (1 + step) if step < 30 else 0.5)
    assert rates.rises == ((29, 30),)
    assert rates.changes == ((0, 1.0), (29, pytest.approx(1 / 30)), (30, 0.5))
