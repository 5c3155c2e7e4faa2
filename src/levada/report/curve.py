"""A curve of losses: so few points that they can be drawn, and a gap where steps are missing."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from levada.runs.losses import told_alone

__all__ = ["counted", "gaps", "loss_series", "of_whom", "scale_of", "told"]

MAX_LOSSES: Final = 1200
WIDE: Final = 100
MAX_TOLD: Final = 3
# So many stretches without a loss are pauses of a watch, of which one so many times as long as all but a few is none.
PAUSES, LONG = 16, 8

Losses = Sequence[tuple[int, float]]


def gaps(losses: Losses) -> list[tuple[int, int]]:
    """Give the first and the last step of each stretch that is missing.

    Of losses that come now and then only, as evaluations do, one is missing at more than twice the usual distance.
    Where many stretches are missing, as of a watch that pauses on short steps, such as are eight times as long as all
    but three are.

    Example:
        >>> gaps([(0, 2.0), (1, 1.9), (4, 1.5), (5, 1.4)]), gaps([(0, 2.0), (20, 1.9), (40, 1.8)])
        ([(2, 3)], [])
    """
    stretches = _stretches(losses)
    if len(stretches) < PAUSES:
        return stretches
    most = LONG * sorted(b - a + 1 for a, b in stretches)[-1 - MAX_TOLD]
    return [(a, b) for a, b in stretches if b - a + 1 > most]


def _stretches(losses: Losses) -> list[tuple[int, int]]:
    # A quarter is no further apart: of a watch that pauses half of all are neighbours, more or less.
    distances = sorted(b - a for (a, _), (b, _) in pairwise(losses)) or [1]
    usual = distances[len(distances) // 4]
    most = 1 if usual <= 1 else 2 * usual
    return [(a + 1, b - 1) for (a, _), (b, _) in pairwise(losses) if b - a > most]


def _pauses(losses: Losses) -> str:
    """Say from which step on there are losses of some steps only; "" where few stretches are missing."""
    stretches = _stretches(losses)
    if len(stretches) < PAUSES:
        return ""
    first, last = stretches[0][0], losses[-1][0]
    heard = sum(step >= first for step, _ in losses)
    steps = f"{heard:,} of {last - first + 1:,} steps"
    return f" From step {first:,} on {steps} have one, as where a watch pauses because steps are short."


def loss_series(
    losses: Losses, label: str = "", shift: int = 0, breaks: Sequence[tuple[int, int]] | None = None
) -> dict[str, Any]:
    """Make a series of a figure; of losses that are not finite it says how many there are, however few are drawn.

    Args:
        losses: steps and losses, in the order of the steps.
        label: its name in the legend.
        shift: is added to every step.
        breaks: the first and the last step of each stretch where the line is broken; by default its own `gaps`.

    Example:
        >>> loss_series([(0, 2.0), (1, math.nan), (2, math.nan)])["edges"]
        {'nan': (2, 1, 2)}
    """
    breaks = gaps(losses) if breaks is None else breaks
    stretches: list[tuple[int, list[tuple[int, float]]]] = []
    begun = -1
    for step, loss in losses:
        passed = bisect_left(breaks, step, key=lambda one: one[0])
        if passed != begun:
            stretches.append((passed, []))
        begun = passed
        stretches[-1][1].append((step, loss))
    share = MAX_LOSSES / max(len(losses), 1)
    points: list[tuple[int, float | None]] = []
    for i, (passed, stretch) in enumerate(stretches):
        if i:
            points.append((breaks[passed - 1][0], None))
        points += _thinned(stretch, max(2, math.ceil(share * len(stretch))))
    places, values = [x + shift for x, _ in points], [y for _, y in points]
    return {"label": label, "style": "measured", "x": places, "y": values, "edges": _edges(losses, shift)}


def _edges(losses: Losses, shift: int) -> dict[str, tuple[int, int, int]]:
    """Of losses that are not finite give, by the edge at which they are drawn, number, first and last place."""
    found: dict[str, tuple[int, int, int]] = {}
    for step, loss in losses:
        if not math.isfinite(loss):
            edge = "nan" if math.isnan(loss) else "above" if loss > 0 else "below"
            count, first, _ = found.get(edge, (0, step + shift, 0))
            found[edge] = (count + 1, first, step + shift)
    return found


def _thinned(losses: Losses, most: int) -> list[tuple[int, float]]:
    """Keep of each stretch the lowest and the highest loss, and the first NaN and the first of each infinity."""
    if len(losses) <= most:
        return list(losses)
    size = math.ceil(2 * len(losses) / most)
    kept: list[tuple[int, float]] = []
    for start in range(0, len(losses), size):
        stretch = losses[start : start + size]
        finite = sorted((one for one in stretch if math.isfinite(one[1])), key=lambda one: one[1])
        odd = {repr(one[1]): one for one in reversed(stretch) if not math.isfinite(one[1])}
        kept += sorted({*finite[:1], *finite[-1:], *odd.values()})
    return kept


def scale_of(losses: Losses) -> tuple[str, str]:
    """Choose the scale of an axis for losses, and say in a caption why where it is logarithmic.

    It is where the largest is more than 100 times the smallest, and where one spike would press all others into a line:
    nine in ten lie within a tenth of the range, and take twice the share of a logarithmic axis, or more.

    Example:
        >>> steady = [(step, 2.0 - step / 100) for step in range(100)]
        >>> scale_of(steady)
        ('linear', '')
        >>> scale_of([*steady, (100, 60.0)])
        ('log', ' The axis is logarithmic, as nine in ten losses lie within a tenth of the range.')
    """
    finite = sorted(value for _, value in losses if math.isfinite(value))
    if not finite or finite[0] <= 0 or finite[-1] == finite[0]:
        return "linear", ""
    least, most = finite[0], finite[-1]
    if most > WIDE * least:
        return "log", f" The axis is logarithmic, as the largest loss is more than {WIDE} times the smallest."
    skipped = len(finite) // 20
    low, high = finite[skipped], finite[-1 - skipped]
    share = (high - low) / (most - least)
    if share < 1 / 10 and math.log(high / low) >= 2 * share * math.log(most / least):
        return "log", " The axis is logarithmic, as nine in ten losses lie within a tenth of the range."
    return "linear", ""


def counted(losses: Losses, left: float | None) -> str:
    """Say of how many steps a curve has the loss; one whose update was not made is none of them.

    Args:
        losses: steps and losses.
        left: the step whose update was not made; None if there is none.

    Example:
        >>> counted([(0, 2.5), (1, math.nan)], 1), counted([(0, 2.5), (1, 2.4)], None)
        ('The loss of 1 step, and that of step 1, whose update was not made', 'The loss of 2 steps')
    """
    made = sum(step != left for step, _ in losses)
    rest = (
        f", and that of step {left:,.0f}, whose update was not made" if left is not None and made < len(losses) else ""
    )
    return f"The loss of {made:,} step{'' if made == 1 else 's'}{rest}"


def told(losses: Losses, *series: Mapping[str, Any]) -> str:
    """Say in a caption what of the losses is missing and what is not drawn.

    Args:
        losses: steps and losses.
        series: the curves that show them.

    Example:
        >>> losses = [(0, 2.0), (1, 1.9), (4, 1.5), (5, 1.4)]
        >>> told(losses, loss_series(losses))
        ' The line is broken where losses are missing: steps 2 to 3.'
    """
    breaks = gaps(losses)
    named = [f"{a:,} to {b:,}" if a != b else f"{a:,}" for a, b in breaks[:MAX_TOLD]]
    more = f", and {len(breaks) - MAX_TOLD:,} more" if len(breaks) > MAX_TOLD else ""
    missing = f" The line is broken where losses are missing: steps {', '.join(named)}{more}." if breaks else ""
    drawn = sum(y is not None for one in series for y in one["y"])
    return (
        _pauses(losses)
        + missing
        + (" Of neighbouring steps the lowest and the highest are drawn." if drawn < len(losses) else "")
    )


def of_whom(events: Iterable[Mapping[str, Any]]) -> str:
    """Say in a caption of which of several processes losses are; "" of one that trains by itself.

    Args:
        events: of the first process of a watched run.

    Example:
        >>> of_whom([{"type": "loss", "steps": [0, 1], "values": [2.0, 1.0], "of": 0}])
        ' They are those of process 0 alone, as no sample came that brings the means over all processes.'
    """
    means, alone = told_alone(events)
    runs = [(steps[0], steps[-1]) for steps in _in_a_row(alone)]
    if not runs:
        return " They are means over all processes." if means else ""
    whose = "of process 0 alone, as no sample came that brings the means"
    if not means:
        return f" They are those {whose} over all processes."
    named = [f"{a:,} to {b:,}" if a != b else f"{a:,}" for a, b in runs[:MAX_TOLD]]
    more = f", and {len(runs) - MAX_TOLD:,} more stretches" if len(runs) > MAX_TOLD else ""
    return f" They are means over all processes; of steps {', '.join(named)}{more} they are those {whose}."


def _in_a_row(steps: Sequence[int]) -> list[list[int]]:
    found = list[list[int]]()
    for step in steps:
        if found and step == found[-1][-1] + 1:
            found[-1].append(step)
        else:
            found.append([step])
    return found
