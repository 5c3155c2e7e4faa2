"""Heat pictures: a signal by block and step as coloured cells, drawn as a few paths, with its scale in numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Final

from levada._names import bare_names, span_name
from levada.report.grid import Grid
from levada.report.words import short, superscript

__all__ = ["NUM_LEVELS", "heat"]

NUM_LEVELS: Final = 16  # classes h0 to h15 of the page's style
DECADES: Final = 3.0  # the least that the colours span, so that what hardly changes looks as if it hardly changes
_NUM_LABELS: Final = 5
_LAST: Final = 0.9  # of the axis: a label behind it would be cut off
_ZERO, _BAD = "hz", "hx"


def heat(grid: Grid, what: str) -> str:
    """Draw a grid as HTML: cells, the names of some rows and columns, and the scale.

    Cells of one level are one path, and neighbours in a row one stroke of it: what is smooth is small.

    Args:
        grid: the cells.
        what: what they hold, for who cannot see them.

    Example:
        >>> grid = Grid((("a", "a"),), ((0, 0), (20, 20)), ((-2.0, math.inf),))
        >>> "NaN or infinite" in heat(grid, "gradient")
        True
    """
    low, high = _ends(grid)
    paths: dict[str, list[str]] = defaultdict(list)
    for i, row in enumerate(grid.cells):
        levels = [_level(value, low, high) for value in row]
        start = 0
        for j in range(1, len(levels) + 1):
            if j < len(levels) and levels[j] == levels[start]:
                continue
            if levels[start]:
                paths[levels[start]].append(f"M{start} {i}.5h{j - start}")
            start = j
    drawn = "".join(f'<path class="{level}" d="{"".join(parts)}"/>' for level, parts in sorted(paths.items()))
    size = f"0 0 {len(grid.columns)} {len(grid.rows)}"
    rows = _labels(grid)
    columns = [f"{first:,}" for first, _ in grid.columns]
    return (
        f'{_legend(grid, low, high)}<div class="heat"><ol class="heat-rows" aria-hidden="true">{_items(rows)}</ol>'
        f'<svg class="cells" viewBox="{size}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(_told(grid, what))}">{drawn}</svg>'
        f'<ol class="heat-columns" aria-hidden="true">{_items(columns)}</ol></div>'
        f'<p class="edges">Down: blocks, from {escape(grid.rows[0][0])} to {escape(grid.rows[-1][1])}. '
        "To the right: samples, by step.</p>"
    )


def _ends(grid: Grid) -> tuple[float, float]:
    if grid.low is None or grid.high is None:
        return -DECADES, 0.0
    low, high = grid.low[0], grid.high[0]
    room = max(0.0, DECADES - (high - low)) / 2
    return low - room, high + room


def _level(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return _BAD if value > 0 else _ZERO
    return f"h{round((value - low) / (high - low) * (NUM_LEVELS - 1))}"


def _labels(grid: Grid) -> list[str]:
    """Name the rows, without what all names share."""
    short_names = bare_names([name for ends in grid.rows for name in ends])
    ends = list(zip(short_names[::2], short_names[1::2], strict=True))
    return [span_name(*pair) for pair in ends]


def _stride(count: int, most: int) -> int:
    """Give the distance of at most `most` labels among `count` cells, a round number, so that all are as far apart.

    Example:
        >>> [_stride(count, 5) for count in (5, 12, 40, 200)]
        [1, 5, 10, 50]
    """
    least = math.ceil(count / most)
    power = int(10 ** (len(str(least)) - 1))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _items(texts: Sequence[str]) -> str:
    """Give an item for each cell, so that a label stands at its own; none near the end, where it would not fit."""
    step = _stride(len(texts), _NUM_LABELS)
    items = [""] * len(texts)
    for place, i in enumerate(range(0, max(1, math.ceil(_LAST * len(texts))), step)):
        less = ' class="less"' if place % 2 else ""
        items[i] = f"<span{less}>{escape(texts[i])}</span>"
    return "".join(f"<li>{item}</li>" for item in items)


def _power(log: float) -> str:
    """Write ten to the power of `log`, also where a float holds it no more."""
    if -300 < log < 300:
        return short(10.0**log)
    return superscript(round(log))


def _legend(grid: Grid, low: float, high: float) -> str:
    steps = "".join(f'<path class="h{i}" d="M{i} .5h1"/>' for i in range(NUM_LEVELS))
    ramp = f'<svg class="ramp" viewBox="0 0 {NUM_LEVELS} 1" preserveAspectRatio="none" aria-hidden="true">{steps}</svg>'
    items = [f"<li><span>{_power(low)}</span> {ramp} <span>{_power(high)}, by orders of magnitude</span></li>"]
    for level, value, words in ((_ZERO, -math.inf, "exactly zero"), (_BAD, math.inf, "NaN or infinite")):
        if grid.count(value):
            mark = (
                f'<svg class="ramp one" viewBox="0 0 1 1" aria-hidden="true"><path class="{level}" d="M0 .5h1"/></svg>'
            )
            items.append(f"<li>{mark} {words}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _told(grid: Grid, what: str) -> str:
    """Say where the lowest and the highest are, and what is no number."""
    told = [f"{what} by block and step"]
    for word, end in (("lowest", grid.low), ("highest", grid.high)):
        if end is not None:
            value, i, j = end
            told.append(f"{word} {_power(value)} at {span_name(*grid.rows[i])}, step {grid.columns[j][0]:,}")
    for value, words in ((-math.inf, "exactly zero"), (math.inf, "NaN or infinite")):
        amount = grid.count(value)
        if amount:
            told.append(f"{amount:,} of {len(grid.rows) * len(grid.columns):,} cells {words}")
    return "; ".join(told)
