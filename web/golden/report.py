"""Write a block of each kind of figure as a report holds it, with the numbers that it must give back.

PYTHONPATH=src python web/golden/report.py
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from pathlib import Path
from typing import Any

from levada.report.embedded import heat_data, line_data
from levada.report.grid import Fine, Row

FILE = Path(__file__).with_name("report.json")


def number(value: float | None) -> Any:
    """Give a number as JSON has it, and the names of those that it lacks."""
    return value if value is None or math.isfinite(value) else str(value)


def rows() -> list[Row]:
    """Give 7 samples of 5 blocks: a zero, an infinity, a NaN, one not measured, and what no float32 holds."""
    made = [[2.0 ** (-i - j) for i in range(5)] for j in range(7)]
    made[1][0], made[2][1], made[3][2], made[4][3] = 0.0, math.inf, math.nan, math.nan
    hurt = [[float((j, i) == (3, 2)) for i in range(5)] for j in range(7)]
    return [Row(20 * j, 20 * j, values, bad) for j, (values, bad) in enumerate(zip(made, hurt, strict=True))]


def spec() -> dict[str, Any]:
    """Give a figure of lines with an interval, a gap, what is no number, and a shaded stretch."""
    names = ["</script><script>alert(1)</script>", "layers.1", "layers.2", "é"]
    line = {"label": "measured", "style": "measured", "names": names, "x": [0, 1, 2, 3]}
    line |= {"y": [1e-60, None, 0.1, math.nan], "low": [1e-61, None, 0.0, None], "high": [1e-59, None, 0.2, None]}
    coded = {"label": "loss", "style": "predicted", "x": [0, 1, 3], "y": [2.0**-40, 0.0, -math.inf]}
    coded |= {"edges": {"below": (5, 2, 3)}}  # its last point stands for the lowest of five
    limit = {"label": "limit", "style": "reference", "x": [0, 3], "y": [0.125, 0.125]}
    return {"x": {"label": "block"}, "y": {"label": "gradient", "scale": "log"}, "series": [line, coded, limit]}


def panels() -> dict[str, Any]:
    """Give a figure of two panels, of which the first has seeds and their median, over a logarithmic axis."""
    seeds = [{"label": "loss", "seed": seed, "x": [1, 10, 100], "y": [4.0, 2.0 + seed, 1.0]} for seed in range(3)]
    other = [{"label": "loss", "x": [1, 2], "y": [1.0, None]}]
    parts = [
        {"title": "narrow", "x": {"label": "step", "scale": "log"}, "series": seeds},
        {"title": "wide", "x": {"label": "step"}, "series": other},
    ]
    return {"y": {"label": "loss", "scale": "linear"}, "panels": parts}


def merged() -> Fine:
    """Give cells of several samples, whose least and greatest are told."""
    return Fine(["a", "b"], [Row(0, 300, [1.0, 4.0], (), [0.5, 0.0], [2.0, 8.0]), Row(320, 320, [1.0, 1.0])], 2)


def vectors() -> dict[str, Any]:
    """Give blocks and what they hold."""
    sites = [f"layers.{i}" for i in range(5)]
    fine = Fine(sites, rows(), 7)
    lines = spec()
    return {
        "heat": heat_data(fine, "The gradient"),
        "logs": [[number(value) for value in column] for column in fine.logs()],
        "marks": [list(column) for column in fine.marks()],
        "merged": heat_data(merged(), "Merged"),
        "ends": [[[number(value) for value in column] for column in end] for end in merged().ends()],
        "lines": line_data(lines, "The gradient"),
        "series": [{**one, "y": [number(value) for value in one["y"]]} for one in lines["series"]],
        "panels": line_data(panels(), "By width"),
    }


def inflated(block: str) -> bytes:
    """Give what a block holds."""
    return zlib.decompress(base64.b64decode(block))


def dumped(told: dict[str, Any]) -> str:
    """Give the text of the file."""
    return json.dumps(told, indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(dumped(vectors()), encoding="utf-8")
