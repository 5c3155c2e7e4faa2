"""What a figure shows: the study's contract, read with care; every seed kept, their median added."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from levada._errors import UsageError
from levada.report.axis import Axis, category_axis, linear_axis, log_axis
from levada.report.words import number

__all__ = ["STYLES", "Panel", "Point", "Series", "Span", "read_panels"]

STYLES: Final = ("measured", "predicted", "bound", "band", "reference", "bar")
MAX_GROUPS: Final = 6  # as many lines and their predictions can be followed in one pair of axes
_SUMMED: Final = ("measured", "predicted")
NUM_DRAWN: Final = 600


@dataclass(frozen=True, slots=True)
class Point:
    """One value with its interval; `y`, `low` and `high` are None where nothing was measured."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together.

    Attributes:
        label: its name in the legend.
        style: one of `STYLES`.
        group: what it belongs to; its name in the legend where a measured and a predicted line share one.
        colour: number of the group, which decides colour and marker; -1 for a reference.
        seed: the seed, or None.
        points: in the order of `x` as it came.
        weight: "thin" for one seed among several, else "thick".
        num_seeds: how many seeds a median stands for, else 0.
        edges: where points stand for more values than themselves, of those without a place on the axis, by the edge
            at which they are drawn: how many, the first and the last `x`.
    """

    label: str
    style: str
    group: str
    colour: int
    seed: Any
    points: tuple[Point, ...]
    weight: str = "thick"
    num_seeds: int = 0
    edges: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)

    @property
    def drawn(self) -> tuple[Point, ...]:
        """About `NUM_DRAWN` points; of more, each stretch's lowest, highest, and one of each that is not finite."""
        if len(self.points) <= NUM_DRAWN:
            return self.points
        size = math.ceil(2 * len(self.points) / NUM_DRAWN)
        kept: list[Point] = []
        for start in range(0, len(self.points), size):
            stretch = self.points[start : start + size]
            odd = {repr(p.y): p for p in stretch if p.y is None or not math.isfinite(p.y)}
            finite = sorted((p for p in stretch if p.y is not None and math.isfinite(p.y)), key=lambda p: p.y or 0.0)
            kept += sorted({*odd.values(), *finite[:1], *finite[-1:]}, key=lambda p: p.x)
        return tuple(kept)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the x axis that is marked, with a short label and the whole sentence."""

    low: float
    high: float
    label: str
    told: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes and what is drawn on it."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    spans: tuple[Span, ...] = ()
    edges: Mapping[str, int] = field(default_factory=dict)


def read_panels(spec: Mapping[str, Any]) -> list[Panel]:
    """Read a figure: one panel, or those under "panels", which take from the figure what they leave out.

    A figure of more than `MAX_GROUPS` groups of lines is divided by the first part of their names, on equal axes.

    Args:
        spec: {"x": {"label", "scale"}, "y": {...}, "series": [...]} or {"panels": [...]}.

    Raises:
        UsageError: if a series has no values, or `x` and `y` differ in length, or a style is unknown.
    """
    divided: list[Mapping[str, Any]] = [] if spec.get("panels") else _divided(_series_of(spec, {}))
    parts = divided or [_part(spec, part) for part in spec.get("panels") or [{}]]
    every = [one for part in parts for one in _series_of(spec, part)]
    colours = _colours(every)
    made = [{**spec, **part, "title": part.get("title", "")} for part in parts]
    return [_read_panel(part, colours, every if divided else _series_of(part, {})) for part in made]


def _divided(raw: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Divide many groups of lines, named "plain tanh, 1/n" or "plain-20", into panels; [] where that is no help."""
    groups = list(dict.fromkeys(_group(one) for one in raw if one.get("style", "measured") == "measured"))
    points = any(len(one.get("x") or ()) < 2 for one in raw)
    if len(groups) <= MAX_GROUPS or points or _categories(raw):
        return []
    for pattern in (r"(.+?), (.+)", r"(.+?)-(\d.*)"):
        found = [re.fullmatch(pattern, group) for group in groups]
        titles = Counter(match[1] for match in found if match)
        if None in found or not 2 <= len(titles) < len(groups) or max(titles.values()) > MAX_GROUPS:
            continue
        named = {group: match.groups() for group, match in zip(groups, found, strict=True) if match}
        shared = [one for one in raw if _group(one) not in named]
        return [
            {
                "title": title,
                "series": [
                    _renamed(one, named[_group(one)])
                    for one in raw
                    if _group(one) in named and named[_group(one)][0] == title
                ]
                + shared,
            }
            for title in titles
        ]
    return []


def _renamed(one: Mapping[str, Any], name: Sequence[str]) -> dict[str, Any]:
    label = str(one.get("label") or "")
    return {**one, "group": name[1], "label": label[label.find(name[1]) :] if name[1] in label else label}


def _part(spec: Mapping[str, Any], part: Any) -> Mapping[str, Any]:
    """Give a panel; a bare name stands for the series whose "panel" it is."""
    if isinstance(part, Mapping):
        return part
    return {"title": str(part), "series": [one for one in spec.get("series") or () if one.get("panel") == part]}


def _series_of(spec: Mapping[str, Any], part: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = part.get("series", spec.get("series"))
    return found if isinstance(found, Sequence) else ()


def _group(series: Mapping[str, Any]) -> str:
    return str(series.get("group") or series.get("label") or "")


def _colours(every: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    groups = dict.fromkeys(_group(series) for series in every if series.get("style") != "reference")
    return {group: i for i, group in enumerate(groups)}


def _read_panel(spec: Mapping[str, Any], colours: Mapping[str, int], scaled: Sequence[Mapping[str, Any]]) -> Panel:
    """Read a panel, with axes that hold all of `scaled`."""
    raw = _series_of(spec, {})
    names = _categories(raw)
    series = [_read_series(one, colours, names) for one in raw]
    series = _with_medians([one for one in series if any(p.y is not None or p.low is not None for p in one.points)])
    held = series if scaled is raw else [_read_series(one, colours, names) for one in scaled]
    x_label, x_scale = _axis_spec(spec.get("x"))
    y_label, y_scale = _axis_spec(spec.get("y"))
    if x_label in ("layer", "block"):
        x_label += ", input on the left, output on the right"
    xs = [point.x for one in held for point in one.points]
    ys = [v for one in held for p in one.points for v in (p.y, p.low, p.high) if v is not None]
    ys += [0.0] if any(one.style == "bar" for one in held) else []  # its length is the value
    if names:
        x = category_axis(x_label, names)
    elif x_scale == "log":
        x = log_axis(x_label, xs)
    else:
        whole = all(value == int(value) for value in xs if math.isfinite(value))
        if xs and any(one.style == "bar" for one in held):
            xs += [min(xs) - 0.5, max(xs) + 0.5]  # a bar has a width
        x = linear_axis(x_label, xs, whole=whole, pad=0.02)
    y = log_axis(y_label, ys) if y_scale == "log" else linear_axis(y_label, ys, count=5)
    edges: Counter[str] = Counter()
    for one in series:
        if not one.num_seeds:
            places = (y.place(p.y) for p in one.points if p.y is not None)
            counts: Counter[str] = Counter(place for place in places if isinstance(place, str))
            edges += counts | {edge: count for edge, (count, _, _) in one.edges.items()}
    spans = tuple(spec.get("spans") or ())
    return Panel(str(spec.get("title") or ""), x, y, tuple(series), spans, dict(edges))


def _axis_spec(axis: Any) -> tuple[str, str]:
    if isinstance(axis, str):
        return axis, "linear"
    axis = axis or {}
    scale = axis.get("scale") or "linear"
    if scale not in ("linear", "log"):
        raise UsageError(f"figure: the scale of an axis is 'linear' or 'log', got {scale!r}.")
    return str(axis.get("label") or ""), scale


def _categories(raw: Sequence[Mapping[str, Any]]) -> list[str]:
    xs = [x for one in raw for x in one.get("x") or ()]
    if all(number(x) is not None for x in xs):
        return []
    return list(dict.fromkeys(str(x) for x in xs))


def _read_series(raw: Mapping[str, Any], colours: Mapping[str, int], names: Sequence[str]) -> Series:
    label, style = str(raw.get("label") or ""), str(raw.get("style") or "measured")
    if raw.get("seed") is not None:
        label = _group(raw)  # the seeds of a group are one family, whatever each calls itself
    if style not in STYLES:
        raise UsageError(f"figure: the style of series {label!r} must be one of {', '.join(STYLES)}, got {style!r}.")
    xs = list(raw.get("x") or ())
    columns = {}
    for key in ("y", "low", "high", "names"):
        column = raw.get(key)
        if column is not None and len(column) != len(xs):
            raise UsageError(
                f"figure: series {label!r} needs as many values of {key!r} as of 'x': {len(column)}, {len(xs)}."
            )
        columns[key] = list(column) if column is not None else [None] * len(xs)
    place = {name: float(i) for i, name in enumerate(names)}
    points = []
    for i, x in enumerate(xs):
        at = place[str(x)] if names else number(x)
        if at is not None and math.isfinite(at):
            y, low, high = (number(columns[key][i]) for key in ("y", "low", "high"))
            points.append(Point(at, y, low, high, str(columns["names"][i] or "")))
    colour = -1 if style == "reference" else colours[_group(raw)]
    return Series(label, style, _group(raw), colour, raw.get("seed"), tuple(points), edges=dict(raw.get("edges") or {}))


def _with_medians(series: list[Series]) -> list[Series]:
    """Draw seeds of one label and style thin, and put their median behind them in the list, so that it lies on top."""
    families: dict[tuple[str, str, str, int], list[Series]] = defaultdict(list)
    for one in series:
        families[one.label, one.style, one.group, one.colour].append(one)
    medians = {key: _median(family) for key, family in families.items() if len(family) > 1 and key[1] in _SUMMED}
    # Where the seeds of one group each have an x of their own, no group is drawn by its median.
    summed = all(points or _nothing(families[key]) for key, points in medians.items())
    done: list[Series] = []
    for key, family in families.items():
        if key not in medians or not summed:
            done += family
            continue
        done += [replace(one, weight="thin") for one in family]
        done.append(replace(family[0], seed=None, points=medians[key], num_seeds=len(family)))
    return done


def _nothing(family: Sequence[Series]) -> bool:
    return all(point.y is None or math.isnan(point.y) for one in family for point in one.points)


def _median(family: Sequence[Series]) -> tuple[Point, ...]:
    """Give the median at every x at which more than half of a family have a value."""
    values: dict[float, list[float]] = defaultdict(list)
    for one in family:
        for point in one.points:
            if point.y is not None and not math.isnan(point.y):
                values[point.x].append(point.y)
    return tuple(Point(x, statistics.median(ys)) for x, ys in sorted(values.items()) if len(ys) > len(family) / 2)
