"""A loss that is above its best to stay is told, though it scatters by as much."""

import math
import random

import pytest
from benchmarks.watch_verdicts.synthetic import Synthetic

from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.held_spikes import ABOVE, above_lowest
from levada.watching.verdict.judged import standing_of
from levada.watching.verdict.lowest import Lowest


def learned(draw, *, steps=400, to=0.005):
    losses = LossBaseline()
    for step in range(steps):
        losses.add(step, to * (1 + 0.2 * draw.random()) + max(0.0, 6 * (1 - step / 50)))
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_a_rise_counts_though_the_loss_scatters_by_more_than_it_rose(seed):
    draw = random.Random(seed)
    losses = learned(draw)
    assert losses.lasting_rise == 0.0
    for step in range(400, 600):
        losses.add(step, draw.lognormvariate(1.0, 2.0))
    assert losses.jitter > losses.recent  # by which a median of seven is no rise
    assert losses.lasting_rise >= losses.recent - 0.01 > 1.0
    for step in range(600, 800):
        losses.add(step, 0.005 * (1 + 0.2 * draw.random()))
    assert losses.lasting_rise < 0.01


NOISE = {
    "normal": lambda draw, step: draw.gauss(1.0, 0.5),
    "heavy": lambda draw, step: draw.lognormvariate(0.0, 1.0),
    "about nothing": lambda draw, step: draw.gauss(0.0, 1.0),
    "two in turn": lambda draw, step: draw.gauss(1.3 if step % 2 else 0.7, 0.1),
    "every fifth is another": lambda draw, step: draw.gauss(5.0 if step % 5 == 4 else 0.1, 0.02),
}


@pytest.mark.parametrize("name", NOISE)
def test_losses_that_only_scatter_rank_as_those_of_their_lowest_stretch(name):
    draw, lowest, most = random.Random(0), Lowest(32), 0.0
    for step in range(5000):
        lowest.add(NOISE[name](draw, step))
        most = max(most, lowest.deviations)
    assert 1 < most < 6


def up_to(level, scatter, *, since=400):
    draw = random.Random(0)

    def edit(step, values, scalars, losses):
        losses[:] = [
            (s, (0.005 + 2.3 * math.exp(-s / 20)) * draw.lognormvariate(0, 0.1))
            if s < since
            else (s, level * draw.lognormvariate(0, scatter))
            for s, _ in losses
        ]

    return edit


@pytest.mark.parametrize(("level", "verdict"), [(0.005, "healthy"), (0.02, "healthy"), (0.2, "unknown")])
def test_a_loss_far_above_its_best_is_not_called_healthy_however_it_scatters(level, verdict):
    run = Synthetic()
    run.run(60, up_to(level, 1.2))
    standing = standing_of(run.judge)
    assert standing.verdict == verdict
    assert ("at its best" in standing.unjudged.get("loss_spike", "")) is (verdict == "unknown")


def above(run):
    return [f for f in run.judge.findings if f.rule == ABOVE]


def test_a_loss_that_stays_a_few_times_above_its_lowest_is_an_information_with_the_step():
    run = Synthetic()
    run.run(60, up_to(0.02, 0.1))
    run.judge.close()
    (finding,) = above(run)
    assert (finding.severity, finding.status) == ("info", "fired")
    assert 100 < finding.evidence["step"] < 400
    assert f"at step {run.judge.loss.latest[-1][0]}, and the lowest 32" in finding.claim
    assert standing_of(run.judge).verdict == "healthy"


@pytest.mark.parametrize("until", [460, 900])
def test_a_loss_that_came_back_is_not_told_at_the_end(until):
    def edit(step, values, scalars, losses):
        up_to(0.02, 0.1)(step, values, scalars, losses)
        losses[:] = [(s, 0.005) if s >= until else (s, loss) for s, loss in losses]

    run = Synthetic()
    run.run(60, edit)
    run.judge.close()
    assert [f.status for f in above(run)] == ["clear"] * (until == 900)  # of 60 steps nothing is told


def test_of_losses_that_only_scatter_or_are_next_to_nothing_no_rise_is_told():
    for draw_loss in NOISE.values():
        draw, losses = random.Random(1), LossBaseline()
        for step in range(2000):
            losses.add(step, draw_loss(draw, step))
            assert step % 20 or above_lowest(losses) is None
    losses = LossBaseline()
    for step in range(600):  # ten times its lowest, by a thousandth of what was learned
        losses.add(step, 4.0 if step < 30 else 1e-4 if step < 300 else 1e-3)
    assert above_lowest(losses) is None


@pytest.mark.parametrize(
    ("lowest", "now", "told"),
    [
        (0.2, 0.41, True),
        (0.2, 0.39, False),  # less than twice
        (0.016, 0.037, True),
        (0.016, 0.034, False),  # twice, and less than a two-hundredth of what was learned above it
    ],
)
def test_a_loss_is_above_its_lowest_by_a_factor_of_two_and_a_two_hundredth_of_what_was_learned(lowest, now, told):
    losses = LossBaseline()
    for step in range(600):
        losses.add(step, 4.0 if step < 50 else lowest + 1e-5 * (step % 7) if step < 400 else now)
    assert (above_lowest(losses) is not None) is told


def test_a_rise_of_the_last_losses_alone_does_not_stay():
    losses = LossBaseline()
    for step in range(600):
        losses.add(step, 4.0 if step < 50 else 0.2 + 1e-5 * (step % 7) if step < 550 else 0.8)
    assert above_lowest(losses) is None  # the median of the 128 that are remembered is still low
