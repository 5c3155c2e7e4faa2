"""What is usual of a loss is, to the last bit, what a sort of its last ones anew after each step says."""

import math
import random
from bisect import bisect_left, bisect_right
from itertools import pairwise

import pytest

from levada._errors import UsageError
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.window import Window


def median(values):
    ordered, half = sorted(values), len(values) // 2
    if not values:
        return math.nan
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


class Sorted:
    """The same numbers, from a list of all losses."""

    def __init__(self, *, window=128, smooth=7):
        self.all, self.window, self.smooth = [], window, smooth
        self.best = self.lowest = math.inf
        self.stretch = []

    def add(self, step, loss):
        if not math.isfinite(loss):
            return
        self.all.append((step, loss))
        last = self.losses(self.window // 4)
        if len(self.all) >= self.smooth:
            self.best = min(self.best, median(self.losses(self.smooth)))
        if len(last) == self.window // 4 and median(last) < self.lowest:
            self.lowest, self.stretch = median(last), sorted(last)

    def losses(self, count):
        return [loss for _, loss in self.all[-count:]]

    def deviations(self):
        last, n = self.losses(self.window // 4), len(self.stretch)
        below = sum(bisect_left(self.stretch, loss) + bisect_right(self.stretch, loss) for loss in last)
        return (below / (2 * n * len(last)) - 0.5) * n * math.sqrt(12 / (2 * n + 1)) if n else 0.0

    def told(self):
        window = self.losses(self.window)
        centre, now, recent = median(window), median(self.losses(self.smooth)), median(self.losses(self.window // 4))
        jitter = 1.4826 * median([abs(b - a) for a, b in pairwise(window)]) / math.sqrt(2)
        few = now - self.best if now - self.best > 6.0 * jitter / math.sqrt(self.smooth) else 0.0
        first, start = self.all[:16], self.all[:32]
        return {
            "steps": len(self.all),
            "latest": tuple(self.all[-(self.window // 4) :]),
            "best": self.best,
            "early": median([loss for _, loss in first]),
            "start": min([loss for _, loss in self.all[:1]] + [median([loss for _, loss in first])]),
            "settled": median([loss for _, loss in start[16:]]) if len(start) == 32 else math.nan,
            "median": centre,
            "now": now,
            "recent": recent,
            "spread": 1.4826 * median([abs(loss - centre) for loss in window]),
            "jitter": jitter,
            "lasting_rise": max(few, recent - self.lowest if self.deviations() > 6.0 else 0.0),
            "fall": median(window[-16:-8]) - median(window[-8:]) if len(window) >= 16 else math.nan,
        }


LOSSES = {
    "random": lambda draw, step: draw.lognormvariate(0, 1) * 0.99**step,
    "tied": lambda draw, step: draw.choice((0.0, -0.0, 1.0, 1.0, 2.0)),
    "of any size": lambda draw, step: draw.choice((1, -1)) * 10 ** draw.uniform(-300, 300),
    "not all finite": lambda draw, step: draw.choice((math.nan, math.inf, -math.inf, draw.random())),
    "constant": lambda draw, step: 0.5,
    "first lower and then higher": lambda draw, step: abs(step - 200) + draw.random(),
}


def bits(told):
    return {name: value.hex() if isinstance(value, float) else value for name, value in told.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_what_a_sort_after_each_step_says(name):
    draw, losses, expected = random.Random(0), LossBaseline(), Sorted()
    for step in range(500):
        loss = LOSSES[name](draw, step)
        losses.add(step, loss)
        expected.add(step, loss)
        told = expected.told()
        if told["steps"]:
            assert bits({key: losses.fall(8) if key == "fall" else getattr(losses, key) for key in told}) == bits(told)


def test_no_loss_is_no_number():
    losses = LossBaseline()
    losses.add(0, math.inf)
    assert (losses.latest, losses.steps, losses.lasting_rise) == ((), 0, 0.0)
    for value in (losses.median, losses.now, losses.recent, losses.spread, losses.jitter, losses.start):
        assert math.isnan(value)


def test_of_equal_numbers_the_earliest_goes():
    window = Window(2)
    for value in (0.0, -0.0, 0.0):
        window.add(value)
    assert [math.copysign(1, value) for value in (*window, *window.ordered)] == [-1, 1, -1, 1]
    assert len(window) == window.count
    assert window.full


@pytest.mark.parametrize("options", [{"window": 3}, {"warm_up": 1}, {"smooth": 0}])
def test_too_few_losses_are_refused(options):
    with pytest.raises(UsageError, match=rf"LossBaseline.*{next(iter(options))}"):
        LossBaseline(**options)
