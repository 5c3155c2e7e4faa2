"""The numbers of a figure inside of the page, for its script: small, exact to what a run keeps, and no HTML at all.

    base64(deflate(<uint32 length of the header> header planes))

The header is JSON; it names the planes, little-endian, in their order:

| type | what it holds |
|---|---|
| codes | the codes of `levada.runs.codes` as differences within rows of `width`: all low bytes, then all high ones |
| whole | whole numbers of 32 bits, as differences |
| float | numbers of 64 bits |
| mark | bytes |
"""

from __future__ import annotations

import base64
import json
import math
import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from levada.report.grid import Fine
from levada.report.series import Panel, Point, Series, read_panels
from levada.runs.codes import NAN, OFFSET, OVERFLOW, PER_OCTAVE, UNDERFLOW, codes_from, decode, encode, to_bytes

__all__ = ["Planes", "heat_data", "line_data", "log_codes"]

_STYLES: Final[Mapping[str, str]] = {
    "measured": "measured",
    "predicted": "predicted",
    "reference": "reference",
    "bound": "reference",
}
_PER_DECADE: Final = PER_OCTAVE / math.log10(2)


class Planes:
    """The planes of a block while they are collected."""

    def __init__(self) -> None:
        self._told: list[dict[str, Any]] = []
        self._parts: list[bytes] = []

    def _add(self, name: str, kind: str, count: int, part: bytes, **more: int) -> None:
        self._told.append({"name": name, "type": kind, "count": count, **more})
        self._parts.append(part)

    def codes(self, name: str, codes: array[int], width: int) -> None:
        """Add codes, rows of `width` in which neighbours are alike."""
        before = array("h", [0]) + codes[:-1]
        before[::width] = array("h", bytes(2 * len(before[::width])))
        steps = (a - b for a, b in zip(codes, before, strict=True))
        part = to_bytes(array("h", ((step + 32768) % 65536 - 32768 for step in steps)))
        self._add(name, "codes", len(codes), part[::2] + part[1::2], width=width)

    def numbers(self, name: str, values: Sequence[float]) -> None:
        """Add numbers in the smallest form that gives them back: whole, as a run's codes, or in full."""
        if all(abs(value) < 2**30 and value == int(value) for value in values):
            whole = list(map(int, values))
            steps = array("i", (b - a for a, b in zip([0, *whole], whole, strict=False)))
            self._add(name, "whole", len(steps), _little(steps))
            return
        coded = encode(values)
        known = all(a == b or a != a for a, b in zip(values, decode(coded), strict=True))
        if known:
            self.codes(name, codes_from(coded), max(len(values), 1))
        else:
            self._add(name, "float", len(values), _little(array("d", values)))

    def marks(self, name: str, marks: bytes) -> None:
        """Add a byte for each place."""
        self._add(name, "mark", len(marks), marks)

    def block(self, header: Mapping[str, Any]) -> str:
        """Give all of it in the letters of base64."""
        # What names and texts say needs no escape: base64 has no letter that HTML reads.
        told = json.dumps({**header, "planes": self._told}, separators=(",", ":"), allow_nan=False).encode()
        held = zlib.compress(b"".join((struct.pack("<I", len(told)), told, *self._parts)), 9)
        return base64.b64encode(held).decode("ascii")


def _little(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def log_codes(logs: Iterable[float]) -> array[int]:
    """Give the codes of numbers, from their logarithms to base 10.

    Example:
        >>> from levada.runs.codes import decoded
        >>> decoded(log_codes([0.0, math.log10(0.5), math.nan]))
        [1.0, 0.5, nan]
    """
    coded = (NAN if log != log else round(_PER_DECADE * log) + OFFSET for log in logs)
    return array("h", (code if code == NAN else min(max(code, UNDERFLOW + 1), OVERFLOW - 1) for code in coded))


def heat_data(fine: Fine, title: str) -> str:
    """Give the block of a heat map.

    Args:
        fine: its cells.
        title: what it shows.
    """
    planes, width = Planes(), len(fine.columns)
    planes.numbers("rows", fine.edges)
    planes.numbers("first", [first for first, _ in fine.columns])
    planes.numbers("last", [last for _, last in fine.columns])
    planes.codes("mean", log_codes(_by_row(fine.logs())), width)
    if not fine.single:
        for name, values in zip(("low", "high"), fine.ends(), strict=True):
            planes.codes(name, codes_from(encode(_by_row(values))), width)
    planes.marks("marks", bytes(_by_row(fine.marks())))
    return planes.block({"kind": "heat", "title": title, "sites": list(fine.sites)})


def _by_row(columns: Sequence[Sequence[Any]]) -> Iterable[Any]:
    return (value for row in zip(*columns, strict=True) for value in row)


def line_data(spec: Mapping[str, Any], title: str) -> str:
    """Give the block of a figure of lines, in panels or not; "" where one of them has bars, names or single points.

    Args:
        spec: the figure.
        title: what it shows.

    Example:
        >>> spec = {"x": {"label": "step"}, "y": {"label": "loss"}, "series": [{"label": "", "x": [0, 1], "y": [2, 1]}]}
        >>> line_data(spec, "The loss")[:2]
        'eN'
    """
    panels = read_panels(spec)
    if not all(map(_can_be_followed, panels)):
        return ""
    planes = Planes()
    if len(panels) == 1:
        return planes.block({"kind": "lines", "title": title, **_panel(planes, panels[0], "")})
    parts = [{"title": panel.title, **_panel(planes, panel, f"{k}.")} for k, panel in enumerate(panels)]
    # A figure that was divided has the same axes in each part.
    return planes.block({"kind": "panels", "title": title, "shared": not spec.get("panels"), "panels": parts})


def _panel(planes: Planes, panel: Panel, prefix: str) -> dict[str, Any]:
    """Add a panel's numbers, and say what they are."""
    series = []
    for i, one in enumerate(panel.series):
        told: dict[str, Any] = {"label": one.label or panel.y.label, "style": _STYLES.get(one.style, "")}
        told["colour"] = "ref" if one.style == "reference" else one.colour % 14
        if one.weight == "thin":
            told["thin"] = True
        if one.edges:
            told["edges"] = {edge: list(found) for edge, found in one.edges.items()}
        _columns(planes, f"{prefix}{{}}{i}", one)
        series.append(told)
    names = {int(p.x): p.name for one in panel.series for p in one.points if p.name}
    whole = all(p.x == int(p.x) for one in panel.series for p in one.points)
    return {
        "x": {"label": panel.x.label, "whole": whole, "scale": panel.x.scale},
        "y": {"label": panel.y.label, "scale": panel.y.scale},
        "names": [names.get(i, "") for i in range(max(names) + 1)] if names else [],
        "series": series,
        "spans": [{"from": span.low, "to": span.high, "label": span.label, "told": span.told} for span in panel.spans],
    }


def _can_be_followed(panel: Panel) -> bool:
    """Say whether the pages' own figure shows all that this one shows."""
    places = [p.x for one in panel.series for p in one.points]
    plain = panel.x.scale == "linear" or (panel.x.scale == "log" and min(places, default=0.0) > 0)
    lines = any(len(one.points) > 1 and one.style != "reference" for one in panel.series)
    return plain and lines and all(one.style != "bar" and _rises(one.points) for one in panel.series)


def _rises(points: Sequence[Point]) -> bool:
    return len(points) > 0 and all(a.x < b.x for a, b in pairwise(points))


def _columns(planes: Planes, name: str, one: Series) -> None:
    """Add a series' numbers, each plane under a name of the form "x0"."""
    planes.numbers(name.format("x"), [p.x for p in one.points])
    planes.numbers(name.format("y"), [math.nan if p.y is None else p.y for p in one.points])
    if any(p.y is None for p in one.points):
        planes.marks(name.format("lacking"), bytes(p.y is None for p in one.points))
    if any(p.low is not None and p.high is not None for p in one.points):
        for end_name in ("low", "high"):
            ends = [getattr(p, end_name) for p in one.points]
            planes.numbers(name.format(end_name), [math.nan if end is None else end for end in ends])
