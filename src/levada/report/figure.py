"""Figures as SVG: axes, lines, points, intervals; no script, no font, no style but the page's classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, Final

from levada.report.axis import Axis
from levada.report.legend import NUM_COLOURS, classes, hue, legend, marker
from levada.report.series import Panel, Point, Series, Span, read_panels
from levada.report.typeset import superscripted
from levada.report.words import short

__all__ = ["Size", "figure"]

_TOP: Final = 34.0
_CHARACTER: Final = 6.9  # mean width of a character at the figures' 13 units
_NUM_WHISKERS: Final = 40
_LINE: Final = 15.0  # distance of two lines of text
_EDGE_WORDS: Final = {
    "zero": ("▽", "exactly zero, drawn below the axis"),
    "below": ("▽", "below what the axis can show"),
    "above": ("△", "infinite, drawn above the axis"),
    "nan": ("×", "NaN, drawn above the axis"),
}


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a drawing, in units of its view box, and the class that decides where it is shown."""

    width: int
    height: int
    shown: str
    num_markers: int


WIDE, NARROW, CELL = Size(880, 400, "wide", 120), Size(400, 330, "narrow", 60), Size(430, 310, "cell", 60)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plotting area inside a drawing."""

    panel: Panel
    left: float
    top: float
    right: float
    bottom: float

    def x(self, value: float) -> float:
        at = self.panel.x.place(value)
        return self.left + (at if isinstance(at, float) else 0.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        at = self.panel.y.place(value)
        if at == "zero" or at == "below":
            return self.bottom
        if at == "above" or at == "nan":
            return self.top
        return self.bottom - float(at) * (self.bottom - self.top)


def figure(spec: Mapping[str, Any]) -> str:
    """Draw a figure of the study's contract as HTML: legend, drawings for wide and narrow screens, notes.

    Args:
        spec: {"title", "x": {"label", "scale"}, "y": {...}, "series": [...], "panels": optional}.

    Raises:
        UsageError: if the specification is not usable.

    Example:
        >>> drawn = figure({"title": "decay", "x": {"label": "block"}, "y": {"label": "gradient", "scale": "log"},
        ...     "series": [{"label": "measured", "x": [0, 1, 2], "y": [1e-6, 1e-3, 0.0]}]})
        >>> "1 value is exactly zero" in drawn
        True
    """
    panels = read_panels(spec)
    title = str(spec.get("title") or "")
    first = WIDE if len(panels) == 1 else CELL
    parts = [legend(panels, _marked(panels, first.num_markers) > 0, _direct(panels[0]) if first is WIDE else ())]
    if len(panels) == 1:
        parts += [_draw(panels[0], size, title, _marked(panels, size.num_markers)) for size in (WIDE, NARROW)]
    else:
        marked = _marked(panels, CELL.num_markers)
        cells = (
            f'<div class="panel"><p class="of-panel">{escape(p.title)}</p>'
            f"{_draw(p, CELL, f'{title}: {p.title}', marked)}</div>"
            for p in panels
        )
        parts.append(f'<div class="panels">{"".join(cells)}</div>')
    counts: dict[str, int] = {}
    for panel in panels:
        for edge, count in panel.edges.items():
            counts[edge] = counts.get(edge, 0) + count
    for edge, count in counts.items():
        sign, words = _EDGE_WORDS[edge]
        parts.append(f'<p class="edges">{sign} {count:,} {"value is" if count == 1 else "values are"} {words}.</p>')
    return "".join(parts)


def _marked(panels: Sequence[Panel], most: int) -> int:
    """Say at every how many points a mark stands: 1 where there is room, 0 where lines alone say it."""
    shown = [[one for one in panel.series if one.style == "measured" and one.weight == "thick"] for panel in panels]
    if max((sum(len(one.drawn) for one in lines) for lines in shown), default=0) <= most:
        return 1
    if len({one.colour for lines in shown for one in lines}) <= NUM_COLOURS:
        return 0
    return max(2, math.ceil(max(len(one.drawn) for lines in shown for one in lines) / 8))


def _direct(panel: Panel) -> dict[int, float]:
    """Give the height of each group's name at the right end of its line; {} where there is no room for all."""
    if panel.x.scale == "category":
        return {}
    lines = [one for one in panel.series if one.style == "measured" and one.weight == "thick" and len(one.points) > 1]
    ends = [(one, last) for one in lines if (last := _last(panel, one)) is not None]
    if not 2 <= len(ends) == len(lines) <= 8 or len({one.colour for one in lines}) < len(lines):
        return {}
    height = WIDE.height - 44 - _TOP
    wanted = sorted(((1 - y) * height + _TOP + 4.5, one.colour) for one, (x, y) in ends)
    if min(x for _, (x, _) in ends) < 0.93 or max(len(one.label) for one in lines) > 24:
        return {}
    placed: dict[int, float] = {}
    at = 0.0
    for y, colour in wanted:
        at = max(y, at + _LINE)
        placed[colour] = at
    # Names that were pushed below the plot move up again, each as far as the one below it asks.
    limit = WIDE.height - 44.0 - 4
    for _, colour in reversed(wanted):
        placed[colour] = min(placed[colour], limit)
        limit = placed[colour] - _LINE
    moved = max(abs(placed[colour] - y) for y, colour in wanted)
    return placed if moved <= 1.5 * _LINE else {}


def _last(panel: Panel, one: Series) -> tuple[float, float] | None:
    """Give the place of the last point that has one."""
    for p in reversed(one.drawn):
        x, y = panel.x.place(p.x), panel.y.place(p.y) if p.y is not None else "nan"
        if isinstance(x, float) and isinstance(y, float):
            return x, y
    return None


def _names(frame: _Frame, placed: Mapping[int, float]) -> Iterator[str]:
    for one in frame.panel.series:
        last = _last(frame.panel, one)
        if one.colour in placed and one.style == "measured" and one.weight == "thick" and last is not None:
            x, y = frame.x(one.drawn[-1].x) + 8, placed[one.colour]
            yield f'<text class="name {hue(one)}" x="{x:.1f}" y="{y:.1f}">{escape(superscripted(one.label))}</text>'


def _draw(panel: Panel, size: Size, title: str, marked: int) -> str:
    widest = max((len(tick.label) for tick in panel.y.ticks), default=1)
    left = 12 + min(widest, 12) * _CHARACTER
    slot = (size.width - left) / max(len(panel.x.ticks), 1)
    longest = max((len(tick.label) for tick in panel.x.ticks), default=1)
    turned = panel.x.scale == "category" and longest * _CHARACTER > slot - 6
    below = 44 + (min(longest, 22) * _CHARACTER * 0.5 if turned else 0)
    placed = _direct(panel) if size.shown == "wide" else {}
    named = max((len(one.label) for one in panel.series if one.colour in placed), default=0)
    right = 14.0 + (named * _CHARACTER * 1.03 if placed else 0.0)
    frame = _Frame(panel, left, _TOP, size.width - right, size.height - below)
    text = (
        f"{title}. {panel.y.label} against {panel.x.label}: {'; '.join(dict.fromkeys(s.label for s in panel.series))}."
    )
    body = [
        *_axes(frame, size, turned),
        *(mark for span in panel.spans for mark in _span(frame, span)),
        *(mark for one in panel.series for mark in _areas(frame, one)),
        *(mark for one in panel.series for mark in _series(frame, one, marked)),
        *_names(frame, placed),
    ]
    return (
        f'<svg class="chart {size.shown}" viewBox="0 0 {size.width} {size.height}" role="img" '
        f'aria-label="{escape(text)}">{"".join(body)}</svg>'
    )


def _axes(frame: _Frame, size: Size, turned: bool) -> Iterator[str]:
    x, y = frame.panel.x, frame.panel.y
    yield f'<text class="axis" x="0" y="13">{escape(_cut(y.label, size.width))}</text>'
    for tick in y.ticks:
        at = frame.bottom - tick.at * (frame.bottom - frame.top)
        if tick.label:
            yield f'<path class="grid" d="M{frame.left:.1f} {at:.1f}H{frame.right:.1f}"/>'
            where = f'x="{frame.left - 8:.1f}" y="{at + 4.5:.1f}" text-anchor="end"'
            yield f'<text class="tick" {where}>{escape(tick.label)}</text>'
    yield f'<path class="base" d="M{frame.left:.1f} {frame.bottom:.1f}H{frame.right:.1f}"/>'
    for tick in _thinned(x, frame.right - frame.left):
        at = frame.left + tick.at * (frame.right - frame.left)
        label = escape(_cut(tick.label, 22 * _CHARACTER))
        yield f'<path class="base" d="M{at:.1f} {frame.bottom:.1f}v5"/>'
        where = f'x="{at:.1f}" y="{frame.bottom + 19:.1f}" text-anchor="middle"'
        if turned:
            where = f'text-anchor="end" transform="translate({at + 4:.1f} {frame.bottom + 16:.1f}) rotate(-30)"'
        yield f'<text class="tick" {where}>{label}</text>'
    where = f'x="{frame.right:.1f}" y="{size.height - 4}" text-anchor="end"'
    yield f'<text class="axis" {where}>{escape(_cut(x.label, size.width))}</text>'


def _thinned(axis: Axis, width: float) -> list[Any]:
    """Leave out labels that would touch."""
    ticks = [tick for tick in axis.ticks if tick.label and -0.001 <= tick.at <= 1.001]
    if axis.scale == "category" or len(ticks) < 2:
        return ticks
    need = max(len(tick.label) for tick in ticks) * _CHARACTER + 10
    every = max(1, math.ceil(need * (len(ticks) - 1) / (width * (ticks[-1].at - ticks[0].at))))
    return ticks[::every]


def _cut(text: str, width: float) -> str:
    most = max(4, int(width / _CHARACTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def _span(frame: _Frame, span: Span) -> Iterator[str]:
    step = (frame.right - frame.left) / max(frame.panel.x.high - frame.panel.x.low, 1e-9)
    left = max(frame.left, frame.x(span.low) - 0.5 * step)
    right = min(frame.right, frame.x(span.high) + 0.5 * step)
    yield (
        f'<rect class="span" x="{left:.1f}" y="{frame.top:.1f}" width="{max(right - left, 2):.1f}" '
        f'height="{frame.bottom - frame.top:.1f}"><title>{escape(span.told)}</title></rect>'
    )
    width = len(span.label) * _CHARACTER
    at, anchor = (left + 7, "start") if left + 7 + width < frame.right else (right - 7, "end")
    # The label stands where the fewest points are behind it.
    start, end = (at, at + width) if anchor == "start" else (at - width, at)
    near = [
        frame.y(p.y)
        for one in frame.panel.series
        for p in one.points
        if p.y is not None and start - 8 <= frame.x(p.x) <= end + 8
    ]
    rows = (frame.top + 18, (frame.top + frame.bottom) / 2, frame.bottom - 12)
    y = min(rows, key=lambda row: sum(abs(row - 5 - point) < 24 for point in near))
    label = escape(_cut(span.label, frame.right - at if anchor == "start" else at - frame.left))
    yield f'<text class="spanlabel" x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}">{label}</text>'


def _areas(frame: _Frame, one: Series) -> Iterator[str]:
    """Draw intervals: an area where they are many, a line each where they are few."""
    held = [p for p in one.drawn if p.low is not None and p.high is not None]
    held = [p for p in held if not math.isnan(p.low or 0.0) and not math.isnan(p.high or 0.0)]
    if not held:
        return
    if one.style == "band" or len(held) > _NUM_WHISKERS:
        upper = [f"{frame.x(p.x):.1f} {frame.y(p.high or 0.0):.1f}" for p in held]
        lower = [f"{frame.x(p.x):.1f} {frame.y(p.low or 0.0):.1f}" for p in reversed(held)]
        yield f'<path class="area {hue(one)}" d="M{"L".join(upper + lower)}Z"/>'
        return
    for p in held:
        at = f"{frame.x(p.x):.1f}"
        low, high = frame.y(p.low or 0.0), frame.y(p.high or 0.0)
        yield f'<path class="whisker {hue(one)}" d="M{at} {low:.1f}V{high:.1f}"/>'


def _series(frame: _Frame, one: Series, marked: int) -> Iterator[str]:
    points = one.drawn
    if one.style == "band" or not points:
        return
    if one.style == "bar":
        yield from _bars(frame, one)
        return
    y_axis = frame.panel.y
    # Between names there is nothing to measure: no line joins them.
    joined = points if frame.panel.x.scale != "category" or one.style != "measured" else ()
    for drawable, run in groupby(joined, lambda p: p.y is not None and not isinstance(y_axis.place(p.y), str)):
        stretch = list(run)
        if drawable and len(stretch) == 1 and one.style in ("predicted", "bound"):
            x, y = frame.x(stretch[0].x), frame.y(stretch[0].y or 0.0)
            yield f'<path class="line {hue(one)} {one.style} single" d="M{x - 6:.1f} {y:.1f}h12"/>'
        elif drawable and len(stretch) > 1:
            path = "L".join(f"{frame.x(p.x):.1f} {frame.y(p.y or 0.0):.1f}" for p in stretch)
            yield f'<path class="line {classes(one)}" d="M{path}"><title>{escape(_named(one))}</title></path>'
    if one.style == "reference":
        yield from _reference_label(frame, one)
    alone = len(points) == 1
    whole = one.style == "measured" and one.weight == "thick"
    for i, p in enumerate(points):
        if p.y is None:
            continue
        place = y_axis.place(p.y)
        if isinstance(place, str):
            yield _edge(frame, one, p, place)
        elif alone or (whole and marked and i % marked == 0):
            yield marker(one, frame.x(p.x), frame.y(p.y), _told(one, p))


def _bars(frame: _Frame, one: Series) -> Iterator[str]:
    width = 0.7 * (frame.right - frame.left) / max(frame.panel.x.high - frame.panel.x.low, 1.0)
    width = min(max(width, 1.5), 56.0)
    zero = frame.y(0.0)
    for p in one.points:
        place = frame.panel.y.place(p.y) if p.y is not None else None
        if isinstance(place, str) and p.y is not None:
            yield _edge(frame, one, p, place)
        elif p.y is not None:
            top, bottom = sorted((frame.y(p.y), zero))
            at = f'x="{frame.x(p.x) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}"'
            yield f'<rect class="bar {hue(one)}" {at}><title>{escape(_told(one, p))}</title></rect>'


def _named(one: Series) -> str:
    if one.num_seeds:
        return f"{one.label}, median of {one.num_seeds} seeds"
    return one.label if one.seed is None else f"{one.label}, seed {one.seed}"


def _told(one: Series, p: Point) -> str:
    seeds = f", median of {one.num_seeds} seeds" if one.num_seeds else ""
    spread = f" [{short(p.low)}, {short(p.high)}]" if p.low is not None and p.high is not None else ""
    what = f" ({one.label}{seeds})" if one.label else ""
    return f"{p.name or short(p.x)}: {short(p.y)}{spread}{what}"


def _edge(frame: _Frame, one: Series, p: Point, edge: str) -> str:
    """Draw a value that has no place on the axis at its edge, with a mark of its own."""
    x, told = frame.x(p.x), f"<title>{escape(_told(one, p))}</title>"
    colour = hue(one)
    if edge == "nan":
        return f'<path class="edge {colour}" d="M{x - 4:.1f} {frame.top - 9:.1f}l8 8m0 -8l-8 8">{told}</path>'
    y, way = (frame.top - 2, -1) if edge == "above" else (frame.bottom - 8, 1)
    return f'<path class="edge {colour}" d="M{x - 4:.1f} {y:.1f}h8l-4 {7 * way}z">{told}</path>'


def _reference_label(frame: _Frame, one: Series) -> Iterator[str]:
    last = next((p for p in reversed(one.points) if p.y is not None and math.isfinite(p.y)), None)
    if last is None or not one.label:
        return
    y = frame.y(last.y or 0.0)
    y = y + 15 if y < frame.top + 14 else y - 6
    yield (
        f'<text class="reflabel" x="{min(frame.x(last.x), frame.right):.1f}" y="{y:.1f}" text-anchor="end">'
        f"{escape(_cut(superscripted(one.label), frame.right - frame.left))}</text>"
    )
