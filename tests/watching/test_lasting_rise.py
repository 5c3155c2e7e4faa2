"""A loss that is above its best to stay is told, though it scatters by as much."""

import math
import random

import pytest
from benchmarks.watch_verdicts.synthetic import Synthetic

from levada.watching.baseline import LossBaseline
from levada.watching.judged import standing_of
from levada.watching.lowest import Lowest


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
