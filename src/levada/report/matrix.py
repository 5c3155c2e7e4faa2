"""Small square matrices as maps, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levada.report.mixing import draw_map, read_matrix

__all__ = ["matrices"]


def matrices(held: Mapping[str, Any]) -> str:
    """Draw matrices of numbers between -1 and 1; "" if none is one.

    Args:
        held: what stands under it -> rows.

    Example:
        >>> "before: row 0, column 1: \u22120.500" in matrices({"before": [[1.0, -0.5], [-0.5, 1.0]]})
        True
    """
    known = {str(name): rows for name, value in held.items() if (rows := read_matrix(value))}
    words = "{name}: row {i}, column {j}"
    maps = "".join(draw_map(name, rows, 1.0, words) for name, rows in known.items())
    return f'<ol class="mixes">{maps}</ol>' if maps else ""
