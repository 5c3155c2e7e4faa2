"""The colours, light and dark, of every page: those of `web/`, reports and documentation are made of one file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Final

__all__ = ["NUM_COLOURS", "palette", "style_sheet"]

NUM_COLOURS: Final = 7


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
