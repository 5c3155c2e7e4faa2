"""The figure of how near to a copy's bandwidth each operation comes, made of the rows of the GPU measured last.

    python -m docs.roofline [--rows FILE] [--image FILE]

writes `images/roofline.svg`, in the reports' style. What takes more arithmetic for each byte that must be moved lies to
the right.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from levada.report.axis import Axis, log_axis
from levada.report.palette import style_sheet

__all__ = ["IMAGE", "Point", "draw", "points"]

ROWS = Path(__file__).parents[1] / "benchmarks" / "results" / "ops.jsonl"
IMAGE = Path(__file__).parent / "images" / "roofline.svg"

PROGRAMS = ("levada", "PyTorch", "liger-kernel")
NAMES = {
    ("residual addition", "forward"): "residual addition",
    ("write_streams", "forward"): "writing",
    ("mHC layer", "forward"): "layer, forward",
    ("mHC layer", "backward"): "layer, backward",
    ("write and read", "forward"): "writing and reading",
}
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 880, 430, 52, 34, 250, 46
_LINE = 15.0  # distance of two labels


@dataclass(frozen=True)
class Point:
    """One program of one operation.

    Attributes:
        name: of the operation.
        program: of `PROGRAMS`.
        intensity: operations per byte.
        share: of the copy's bytes per second.
        low: quartile of the same.
        high: likewise.
    """

    name: str
    program: str
    intensity: float
    share: float
    low: float
    high: float


def operations_of(operator: str, way: str, n: int) -> int:
    """Count operations for each token and channel; an addition and a multiplication are two.

    Args:
        operator: as rows name it.
        way: forward, or backward, where each product has two.
        n: number of streams.
    """
    write = 2 * n * n + 2 * n  # mixing; what the branch returned, weighted and added
    read = 2 * n * (2 * n + n * n) + 2 * n + 2 * n  # projection, squares, the sum
    each = {"residual addition": 1, "write_streams": write}.get(operator, write + read)
    return each if way == "forward" else 2 * each


def points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Return the newest point of each program and operation that a name is known for, on the GPU measured last.

    Args:
        rows: of `benchmarks/results/ops.jsonl`.
    """
    found = {}
    on_gpu = [row for row in rows if row["machine"]["device"] != "CPU"]
    for row in on_gpu:
        operator, way = re.match(r"(.+) (forward|backward|both) ", row["case"]).groups()  # type: ignore[union-attr]
        if row["machine"]["device"] != on_gpu[-1]["machine"]["device"] or (operator, way) not in NAMES:
            continue
        name = NAMES[operator, way]
        program = {"reference": "PyTorch"}.get(row["candidate"], row["candidate"].split(",")[0])
        if operator == "write and read" and program == "levada":
            name += ", two operations" if "two" in row["candidate"] else ", one pass less"
        size = row["extra"]
        each = size["bytes"] / size["tokens"] / size["width"]
        low, share, high = (1 / row["ratio"][key] for key in ("q3", "median", "q1"))
        intensity = operations_of(operator, way, size["streams"]) / each
        found[name, program] = Point(name, program, intensity, share, low, high)
    return list(found.values())


def draw(found: Sequence[Point]) -> str:
    """Return the figure.

    Args:
        found: what to draw.
    """
    x = log_axis("operations per byte that must be moved", [p.intensity for p in found])
    y = log_axis("bytes per second, over those of a copy", [1.0, *(v for p in found for v in (p.low, p.high))])
    body = [
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>',
        *_axes(x, y),
        *_legend(),
        *(_mark(p, _x(x, p), _y(y, p.share), _y(y, p.low), _y(y, p.high)) for p in found),
        *_labels(x, y, found),
    ]
    told = "; ".join(f"{p.name}, {p.program}: {p.share:.2f}" for p in found)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"{y.label}: {told}")}">\n<style>{_style()}</style>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _x(axis: Axis, point: Point) -> float:
    return _LEFT + float(axis.place(point.intensity)) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - float(axis.place(value)) * (_HEIGHT - _BOTTOM - _TOP)


def _axes(x: Axis, y: Axis) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<text class="axis" x="0" y="13">{escape(y.label)}</text>']
    for tick in y.ticks:
        at = bottom - tick.at * (bottom - _TOP)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4.5:.1f}" text-anchor="end">{tick.label}</text>')
    parts.append(f'<path class="base" d="M{_LEFT} {bottom}H{right}"/>')
    for tick in x.ticks:
        at = _LEFT + tick.at * (right - _LEFT)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 19}" text-anchor="middle">{tick.label}</text>')
    parts.append(f'<text class="axis" x="{right}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x.label)}</text>')
    roof = _y(y, 1.0)
    parts.append(f'<path class="line reference ref" d="M{_LEFT} {roof:.1f}H{right}"/>')
    parts.append(f'<text class="reflabel" x="{right + 6}" y="{roof + 4.5:.1f}">a copy</text>')
    return parts


def _legend() -> list[str]:
    parts = []
    for i, program in enumerate(PROGRAMS):
        at = 330 + 120 * i
        parts.append(_shape(i, at, 9, program))
        parts.append(f'<text class="name c{i}" x="{at + 10}" y="13">{program}</text>')
    return parts


def _shape(i: int, x: float, y: float, told: str) -> str:
    """Draw a mark; programs differ in its shape, too."""
    path = ("M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0", "M-4.5 -4.5h9v9h-9z", "M0 -6l5.5 10h-11z")[i]
    return (
        f'<path class="dot c{i}" transform="translate({x:.1f} {y:.1f})" d="{path}"><title>{escape(told)}</title></path>'
    )


def _mark(point: Point, x: float, y: float, low: float, high: float) -> str:
    i = PROGRAMS.index(point.program)
    told = f"{point.name}, {point.program}: {point.share:.3f} [{point.low:.3f}, {point.high:.3f}]"
    return f'<path class="whisker c{i}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>' + _shape(i, x, y, told)


def _labels(x: Axis, y: Axis, found: Sequence[Point]) -> list[str]:
    """Name each point at its side; names that would lie on one another move down, those at the right in a column."""
    right = _WIDTH - _RIGHT
    parts, last = [], _y(y, 1.0)
    for p in sorted(found, key=lambda p: -p.share):
        at, height = _x(x, p) + 10, _y(y, p.share)
        if right - at < 60:
            at, height = right + 6, max(height, last + _LINE)
            last = height
        else:
            height += 14
        i = PROGRAMS.index(p.program)
        parts.append(f'<text class="name c{i}" x="{at:.1f}" y="{height + 4.5:.1f}">{escape(p.name)}</text>')
    return parts


def _style() -> str:
    """Return what of the reports' style sheet the figure needs."""
    sheet = style_sheet()
    end = sheet.index("}", sheet.index("}", sheet.index("@media screen")) + 1) + 1
    classes = ("chart", "c0", "c2", "c6", "line", "line.reference", "dot", "whisker", "grid", "base", "tick", "name")
    kept = [
        line for line in sheet[end:].splitlines() if re.match(rf"\.({'|'.join(map(re.escape, classes))})[ ,]", line)
    ]
    text = ".paper { fill: var(--paper); } .chart { font-family: system-ui, sans-serif; }"
    return "\n".join([sheet[:end], *kept, text])


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(prog="python -m docs.roofline", description=main.__doc__)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--image", type=Path, default=IMAGE)
    options = parser.parse_args()
    found = points(json.loads(line) for line in options.rows.read_text().splitlines())
    if not found:
        parser.error(f"{options.rows} has no row of a GPU for an operation that is drawn: take some first")
    options.image.write_text(draw(found), encoding="utf-8")


if __name__ == "__main__":
    main()
