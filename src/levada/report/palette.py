"""The colours, light and dark, of every page: those of `web/`, reports and documentation are made of one file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Final

__all__ = ["BROKEN", "NUM_COLOURS", "SIGNS", "palette", "style_sheet"]

NUM_COLOURS: Final = 7
SIGNS: Final = "Blue is above zero, brown (orange on a dark page) below."
"""What the colours of a number's cell, `c0` and `c1`, mean, in the words of every page."""
BROKEN: Final = "Purple is NaN or infinite."
"""The same of `c3`, where there is such a cell."""


def palette() -> dict[str, dict[str, str]]:
    """Read the colours: theme -> name -> `#rrggbb`.

    `c0` to `c6` are those of measured lines, `p0` to `p6` of what theory predicts for them.

    Example:
        >>> sorted(palette()), palette()["light"]["water"]
        (['dark', 'light'], '#0b6a8c')
    """
    read: dict[str, dict[str, str]] = json.loads(_text("palette.json"))
    return read


@cache
def style_sheet() -> str:
    """Give the style of a report: its colours, dark on a screen where the system is so, and its rules."""
    light, dark = (
        " ".join(f"--{name}: {colour};" for name, colour in colours.items())
        for colours in (palette()["light"], palette()["dark"])
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{_text('report.css')}"
    )


def _text(name: str) -> str:
    return resources.files("levada.report").joinpath("templates", name).read_text(encoding="utf-8")
