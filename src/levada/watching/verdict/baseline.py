r"""What a run's own signals usually are: a median and a spread that a few odd samples do not move.

For the last $n$ samples $x_1 \ldots x_n$ of one signal at one site, the baseline of $y_i = \log_2 x_i$ is the median
$m$ and $s = 1.4826 \, \mathrm{median} |y_i - m|$, which estimates the standard deviation of a normal variable. Octaves,
because a signal that halves has moved as far as one that doubles.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Final, final

import torch
from torch import Tensor

from levada._errors import require_at_least
from levada.watching.verdict.falling import Falling
from levada.watching.verdict.growth import Growth
from levada.watching.verdict.lowest import Lowest, median_of
from levada.watching.verdict.window import Window

__all__ = ["ZERO", "Baseline", "LossBaseline", "octaves", "times"]

_MEDIAN: Final = 1.2533  # standard deviation of a median of normal variables over that of their mean
_NORMAL: Final = 1.4826  # standard deviation of a normal variable over its median absolute deviation
# Octaves, below the smallest float64: a signal that becomes zero has fallen as far as one can.
ZERO: Final = -1100.0
"""What `octaves` gives of zero."""
# Octaves: two samples of one constant number differ by rounding, and by what a next batch changes of it.
_LEAST_SPREAD: Final = 0.05
# The best is the least of many medians, and so below what is usual without a rise: by up to so many deviations.
CLEAR: Final = 6.0


@final
class Baseline:
    """Median and spread, in octaves, of the last samples of each of many signals.

    A sample that is NaN was not measured and counts for nothing. The median is taken anew every `refresh` samples:
    it hardly moves between them, and a sort of every signal's window is most of what judging costs.

    Args:
        columns: number of signals, all sites together.
        window: samples that are remembered.
        warm_up: samples of a signal before it has a baseline.
        refresh: samples between two medians.

    Cost: `columns * window` numbers of 4 bytes, and one sort of them in `refresh` samples.

    Example:
        >>> baseline = Baseline(2, window=8, warm_up=4)
        >>> for value in (1.0, 1.1, 0.9, 1.0):
        ...     baseline.add(torch.tensor([value, math.nan], dtype=torch.float64))
        >>> told = baseline.deviation(torch.tensor([8.0, 8.0], dtype=torch.float64))
        >>> bool(told[0] > 10), bool(told[1].isnan())
        (True, True)
    """

    def __init__(self, columns: int, *, window: int = 32, warm_up: int = 8, refresh: int = 4) -> None:
        for name, value, least in (("window", window, 2), ("warm_up", warm_up, 2), ("refresh", refresh, 1)):
            require_at_least("Baseline", name, value, least)
        self.warm_up = warm_up
        self.samples = 0
        self._refresh = refresh
        self._ring = torch.full((columns, window), math.nan, dtype=torch.float32)
        self._centre = torch.full((columns,), math.nan, dtype=torch.float32)
        self._spread = torch.full((columns,), math.nan, dtype=torch.float32)
        self._anchor = torch.full((columns,), math.nan, dtype=torch.float32)
        self._stale = 0

    @property
    def centre(self) -> Tensor:
        """Octaves: the median of the window; NaN during the warm-up."""
        return self._centre

    @property
    def spread(self) -> Tensor:
        """Octaves: the standard deviation that the window's median absolute deviation stands for."""
        return self._spread

    @property
    def anchor(self) -> Tensor:
        """Octaves: the first baseline that a signal had. A slow change moves the window with it, and leaves this."""
        return self._anchor

    def add(self, values: Tensor) -> None:
        """Take one sample.

        Args:
            values: a value of each signal, at least 0; NaN where it was not measured.
        """
        self._ring[:, self.samples % self._ring.shape[1]] = octaves(values)
        self.samples += 1
        self._stale += 1
        if self._stale >= self._refresh or self.samples <= 2 * self.warm_up:
            self._stale = 0
            self._take()

    def rise(self, values: Tensor) -> Tensor:
        """Return how many octaves each value is above its median; NaN without a baseline, or above one of zero.

        Args:
            values: as in `add`.
        """
        return octaves(values) - torch.where(self._centre > ZERO, self._centre, math.nan)

    def deviation(self, values: Tensor) -> Tensor:
        """Return how many standard deviations each value is above its median; NaN where `rise` is.

        Args:
            values: as in `add`.
        """
        return self.rise(values) / self._spread

    def _take(self) -> None:
        ready = (~self._ring.isnan()).sum(1) >= self.warm_up
        centre = self._ring.nanmedian(1).values
        self._centre = torch.where(ready, centre, math.nan)
        spread = _NORMAL * (self._ring - self._centre[:, None]).abs().nanmedian(1).values
        self._spread = spread.clamp(min=_LEAST_SPREAD)
        self._anchor = torch.where(self._anchor.isnan(), self._centre, self._anchor)


def octaves(values: Tensor) -> Tensor:
    """Return log2 of values; of zero a number below every other, of NaN and infinities NaN.

    Args:
        values: at least 0.

    Example:
        >>> octaves(torch.tensor([4.0, 0.0, math.inf])).tolist()
        [2.0, -1100.0, nan]
    """
    logs = values.double().log2()
    logs = torch.where(values.isfinite(), logs, math.nan)
    return logs.clamp(min=ZERO).float()


def times(rise: float) -> str:
    """Return a rise or fall in octaves as words.

    Args:
        rise: octaves; the fall to zero is below -1000.

    Example:
        >>> times(3.0), times(-1.0), times(-1100.0)
        ('8 times above', '2 times below', 'at zero, below')
    """
    if abs(rise) > 1000:
        return "at zero, below"
    return f"{2 ** abs(rise):.3g} times {'above' if rise > 0 else 'below'}"


@final
class LossBaseline:
    """What the loss of a step usually is, what it was at the start, and the best that it came to.

    The baseline is the median of the last `window` losses, and the spread that of their differences from it; losses
    that are not finite are left out. The start is the median of the first losses, or the very first if that is
    lower, which no step has thrown up; the best is the lowest median of `smooth` losses in a row.

    Args:
        window: losses that are remembered, at least 4; if fewer than `warm_up // 2`, the start is of those alone.
        warm_up: losses before there is a baseline.
        smooth: losses whose median is the loss now.

    Example:
        >>> losses = LossBaseline(warm_up=8)
        >>> for step in range(40):
        ...     losses.add(step, 2.0 + 0.01 * (step % 3))
        >>> round(losses.excess(2.5)), losses.start, losses.learned
        (33, 2.0, 0.0)
    """

    def __init__(self, *, window: int = 128, warm_up: int = 32, smooth: int = 7) -> None:
        for name, value, least in (("window", window, 4), ("warm_up", warm_up, 2), ("smooth", smooth, 1)):
            require_at_least("LossBaseline", name, value, least)
        self.warm_up = warm_up
        self.steps = 0
        self.start = math.nan
        self.first, self.first_step = math.nan, -1
        self.best = math.inf
        self.early = math.nan  # the median of the first losses, of which the very first alone saw no update
        self.settled = math.nan  # the median of as many behind them
        self.constant = math.nan  # what the best prediction that is the same for every input would have, if known
        self._minimised = False  # whether that was positive on any batch
        self._growth, self._inputs = Growth(), Growth()  # of the same for each batch; of the size of its inputs
        self.falling = Falling()
        self.few, self.half = smooth, warm_up // 2  # losses of which `now`, and of which `early` is the median
        self._steps: deque[int] = deque(maxlen=window)
        self._recent, self._few, self._lowest = Window(window), Window(smooth), Lowest(window // 4)
        self.lowest_step = -1  # the last one of the losses in a row whose median was the lowest

    def sampled(self, scalars: Mapping[str, float]) -> None:
        """Take what a sample knows of the loss of the best prediction that is the same for every input, and of these.

        Args:
            scalars: of the sample.
        """
        constant = float(scalars.get("constant_loss", math.nan))
        self.constant = self.constant if math.isnan(constant) else constant
        self._minimised = self._minimised or constant > 0
        self._growth.add(float(scalars.get("constant_of_batch", math.nan)))
        self._inputs.add(float(scalars.get("input_rms", math.nan)))

    def add(self, step: int, loss: float) -> None:
        """Take the loss of one step.

        Args:
            step: its number.
            loss: its loss.
        """
        if not math.isfinite(loss):
            return
        self.steps += 1
        self._steps.append(step)
        self._recent.add(loss)
        self._few.add(loss)
        if self._lowest.add(loss):
            self.lowest_step = step
        if self.steps == 1:
            self.first, self.first_step = loss, step
        if self.steps <= self.warm_up // 2:  # the first of them is that of weights that no step has moved
            self.early = self.median
            self.start = min(self.first, self.early)
        elif self.steps == self.warm_up:
            self.settled = median_of([*self._recent][self.warm_up // 2 :])
        self.falling.add(step - self.first_step + 1, self.now)
        if self._few.full:
            self.best = min(self.best, self.now)

    @property
    def ready(self) -> bool:
        """Whether there are losses enough to know what is usual."""
        return self.steps >= self.warm_up

    @property
    def latest(self) -> tuple[tuple[int, float], ...]:
        """Steps and losses of the last few, a quarter of those that are remembered."""
        last = [*self._lowest.last]
        return tuple(zip([*self._steps][-len(last) :], last, strict=True)) if last else ()

    @property
    def kept(self) -> int:
        """How many losses are remembered, of which `median` is the median."""
        return len(self._recent)

    @property
    def has_learned(self) -> bool:
        """Whether the loss is known for long enough, and came below its start by a twentieth of that."""
        return self.ready and self.learned >= 0.05 * abs(self.start)

    @property
    def lowest(self) -> float:
        """The lowest median of so many losses in a row as `latest` holds; infinite of fewer."""
        return self._lowest.median

    @property
    def median(self) -> float:
        """The median of the losses that are remembered; NaN of none."""
        return self._recent.median

    @property
    def now(self) -> float:
        """The median of the last few losses; NaN of none."""
        return self._few.median

    @property
    def spread(self) -> float:
        """The standard deviation that the median absolute deviation stands for; a drift within the window counts."""
        centre = self.median
        return _NORMAL * median_of([abs(loss - centre) for loss in self._recent])

    @property
    def jitter(self) -> float:
        """The standard deviation of one loss that its differences from the one before stand for: no drift counts."""
        return _NORMAL * median_of([abs(b - a) for a, b in pairwise(self._recent)]) / math.sqrt(2)

    @property
    def lasting_rise(self) -> float:
        """How far the loss is above its best; 0 where chance explains it.

        Either the last few are further above than single losses scatter; or the last quarter of those remembered are
        above those of when it was lowest by their ranks, as steps that are too long make losses scatter the more.
        """
        rise, further = self.now - self.best, self.recent - self._lowest.median
        few = rise if rise > CLEAR * self.jitter / math.sqrt(self._few.count) else 0.0
        return max(few, further if self._lowest.deviations > CLEAR else 0.0)

    @property
    def learned(self) -> float:
        """How far the loss has come below its start, or below the very first if that is higher; at least 0."""
        return max(0.0, max(self.start, self.first) - self.best) if math.isfinite(self.best) else 0.0

    @property
    def untrained(self) -> float:
        """The loss of the untrained model: the very first, or twice the start if an initialisation was further off."""
        return max(self.start, min(self.first, self.start + abs(self.start)))

    @property
    def grown(self) -> float:
        """Times by which the loss of the best constant prediction has grown, where inputs have, too; 1 otherwise."""
        return self._growth.factor if self.inputs_grown > 1 else 1.0

    @property
    def inputs_grown(self) -> float:
        """Times by which the inputs have grown since the first batches; 1 if not known."""
        return self._inputs.factor

    @property
    def maximised(self) -> bool:
        """Whether it falls, and is `negated`."""
        return self.ready and self.recent < min(0.0, self.start) and self.fell and self.negated

    @property
    def negated(self) -> bool:
        """Whether it is known to be a negative multiple of what is never negative, on all batches."""
        return self.constant < 0 and not self._minimised

    @property
    def fell(self) -> bool:
        """Whether it came below its start by a twentieth of that, or so far below the very first, scatter left out.

        One loss may be high by its batch alone, and the best is the least of many medians.
        """
        enough = 0.05 * abs(self.start)
        return self.start - self.best >= enough or self.first - self.best >= enough + CLEAR * self.jitter

    @property
    def recent(self) -> float:
        """The median of the last quarter of the losses that are remembered; NaN of none."""
        return self._lowest.last.median

    @property
    def no_better(self) -> bool:
        """Whether the last losses are known to be no lower than what the best constant prediction would have.

        Lower is by a hundredth, and by more than single losses scatter.
        """
        below = self.constant - self.recent
        return self.ready and below < max(0.01 * self.constant, self._scatter)

    @property
    def flat(self) -> bool:
        """Whether it has not fallen since its first steps, nor in these by half of its size.

        As much is what learning a constant looks like, where it is not known what that gives.
        """
        if self.steps < self._recent.count or self.learned >= 0.5 * abs(self.start):
            return False
        fallen = min(self.start, self.settled) - self.recent
        return fallen < max(0.02 * abs(self.start), self._scatter)

    @property
    def _scatter(self) -> float:
        """By how much the median of the last losses is below another for certain."""
        return CLEAR * _MEDIAN * self.jitter / math.sqrt(len(self._lowest.last))

    @property
    def scale(self) -> float:
        """A change of the loss that matters in this run: what was learned, or a quarter of the start's size."""
        return max(self.learned, 0.25 * abs(self.start))

    @property
    def deviation(self) -> float:
        """The standard deviation of one loss; rounding alone is no spread."""
        return max(self.spread, 1e-3 * max(abs(self.median), 1e-3 * self.scale), 1e-30)

    def thrown(self, share: float) -> bool:
        """Return whether the first updates raised the loss: the median of the first losses is above the very first.

        Args:
            share: of the first, by how much.
        """
        return self.early - self.first >= share * abs(self.first)

    def excess(self, loss: float) -> float:
        """Return how many standard deviations a loss is above the median.

        Args:
            loss: of one step.
        """
        return (loss - self.median) / self.deviation

    def fall(self, steps: int) -> float:
        """Return how far the median of the last `steps` losses is below that of as many before them; NaN of fewer.

        Args:
            steps: how many losses each side has.
        """
        losses = [*self._recent]
        if len(losses) < 2 * steps:
            return math.nan
        return median_of(losses[-2 * steps : -steps]) - median_of(losses[-steps:])
