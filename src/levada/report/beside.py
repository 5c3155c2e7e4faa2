"""What stands in a page for one figure: its picture, a table of its numbers, and the numbers for the page's script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from levada._names import bare_names, span_name
from levada._numbers import sampled
from levada.report.embedded import heat_data, line_data
from levada.report.figure import figure
from levada.report.grid import INFINITE, NAN, ZERO, Fine
from levada.report.heat import heat
from levada.report.series import Panel, Point, Series, read_panels
from levada.report.words import number, precise, short

__all__ = ["heat_figure", "line_figure", "panel_table", "written"]

MAX_ROWS: Final = 200
MAX_HEAT_ROWS: Final = 60
MAX_HEAT_COLUMNS: Final = 6


def line_figure(spec: Mapping[str, Any], title: str, caption: str) -> dict[str, Any]:
    """Make what the template shows of a figure of lines.

    Args:
        spec: the figure; one of several panels has no numbers for the page's script.
        title: stands above it.
        caption: stands below it.

    Example:
        >>> spec = {"x": {"label": "step"}, "y": {"label": "loss"}, "series": [{"label": "", "x": [0, 1], "y": [2, 1]}]}
        >>> line_figure(spec, "The loss", "")["table"]["rows"]
        [['0', '2'], ['1', '1']]
    """
    shown = {"title": title, "caption": caption, "svg": figure(spec)}
    return {**shown, "table": _line_table(spec), "data": line_data(spec, title)}


def heat_figure(fine: Fine, title: str, what: str, note: str = "") -> dict[str, Any]:
    """Make what the template shows of a heat map; `finer` is the caption of the figure that can be zoomed.

    Args:
        fine: its cells.
        title: stands above it.
        what: the cells hold, for who cannot see them.
        note: the end of its caption.
    """
    grid = fine.grid()
    caption = f"{_merged(fine, len(grid.rows), len(grid.columns))} {note}".rstrip()
    finer = f"{_merged(fine, len(fine.edges) - 1, len(fine.columns))} {note}".rstrip()
    shown = {"title": title, "caption": caption, "finer": finer, "svg": heat(grid, what)}
    return {**shown, "table": _heat_table(fine), "data": heat_data(fine, title)}


def _merged(fine: Fine, rows: int, columns: int) -> str:
    """Say what the cells of so many rows and columns are."""
    merged = [f"{len(fine.sites):,} blocks in {rows:,} rows"] if rows < len(fine.sites) else []
    merged += [f"{fine.total:,} samples in {columns:,} columns"] if columns < fine.total else []
    how = ": the mean of their logarithms, unless one is zero or no finite number." if merged else ""
    return f"Root mean square per element. {' and '.join(merged)}{how}".rstrip()


def written(value: float | None) -> str:
    """Write a number with three digits, also those of a power of ten, as the page's script does.

    Example:
        >>> written(0.40812), written(4.134e-19), written(20000.0), written(None)
        ('0.408', '4.13×10⁻¹⁹', '20,000', '—')
    """
    amount = number(value)
    if amount is None or amount == 0 or 1e-3 <= abs(amount) < 1e5:
        return short(value)
    return precise(value)


def panel_table(spec: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Make the table of a figure's numbers, a row for each point of each panel; medians of seeds are left out.

    Args:
        spec: the figure.
        most: rows, evenly spaced.

    Example:
        >>> part = {"x": {"label": "step"}, "y": {"label": "loss"}, "series": [{"label": "", "x": [0], "y": [2]}]}
        >>> panel_table({"panels": [{**part, "title": "one"}, {**part, "title": "two"}]}, 10)
        {'head': ['panel', 'x', 'y'], 'rows': [['one', '0', '2'], ['two', '0', '2']], 'total': 2}
    """
    rows = [
        (panel.title, one.label, "" if one.seed is None else str(one.seed), *_cells(panel, point))
        for panel in read_panels(spec)
        for one in panel.series
        if not one.num_seeds
        for point in one.points
    ]
    kept = [rows[i] for i in sampled(len(rows), most)]
    head = ["panel", "series", "seed", "x", "y", "low", "high"]
    used = [i for i in range(len(head)) if any(row[i] not in ("", "—") for row in kept)]
    return {"head": [head[i] for i in used], "rows": [[row[i] for i in used] for row in kept], "total": len(rows)}


def _cells(panel: Panel, point: Point) -> tuple[str, str, str, str]:
    return point.name or _place(panel, point.x), short(point.y), short(point.low), short(point.high)


def _place(panel: Panel, x: float) -> str:
    return panel.x.ticks[int(x)].label if panel.x.scale == "category" else short(x)


def _line_table(spec: Mapping[str, Any]) -> dict[str, Any]:
    panels = read_panels(spec)
    if len(panels) != 1:
        return panel_table(spec, MAX_ROWS)
    panel = panels[0]
    series = [one for one in panel.series if one.points]
    held = [{p.x: p for p in one.points} for one in series]
    places = sorted({x for points in held for x in points})
    names = {p.x: p.name for one in series for p in one.points if p.name}
    kept = [places[i] for i in sampled(len(places), MAX_ROWS)]
    rows = [[names.get(x) or _place(panel, x), *(_cell(points.get(x)) for points in held)] for x in kept]
    label = str((spec.get("x") or {}).get("label") or "").partition(",")[0] or "what"
    return {
        "head": [label, *(_head(one, panel.y.label) for one in series)],
        "rows": rows,
        "total": len(places),
    }


def _head(one: Series, label: str) -> str:
    return one.label or label


def _cell(point: Point | None) -> str:
    if point is None:
        return ""
    ends = f"{written(point.low)} to {written(point.high)}" if point.low is not None and point.high is not None else ""
    if point.y is None:
        return ends or "—"
    return f"{written(point.y)} [{ends}]" if ends else written(point.y)


def _heat_table(fine: Fine) -> dict[str, Any]:
    logs, marks = fine.logs(), fine.marks()
    count = len(fine.edges) - 1
    rows = sampled(count, MAX_HEAT_ROWS)
    columns = sampled(len(fine.columns), MAX_HEAT_COLUMNS)
    bare = bare_names([name for i in rows for name in (fine.sites[fine.edges[i]], fine.sites[fine.edges[i + 1] - 1])])
    cells = [
        [span_name(*bare[2 * k : 2 * k + 2]), *(_heat_cell(logs[j][i], marks[j][i]) for j in columns)]
        for k, i in enumerate(rows)
    ]
    head = [_stretch(*fine.columns[j]) for j in columns]
    return {"head": ["block", *head], "rows": cells, "total": count}


def _stretch(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _heat_cell(log: float, mark: int) -> str:
    if mark & INFINITE:
        return "infinite"
    if mark & NAN:
        return "NaN"
    if mark & ZERO:
        return "zero"
    return "—" if log != log else written(10.0**log) if -300 < log < 300 else f"10^{log:.1f}"
