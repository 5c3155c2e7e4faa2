"""The page on verdicts, made when the documentation is built: from the rows of the diagnosis benchmark.

In `verdicts.md` a comment `<!-- name -->` stands for what `benchmarks.diagnosis.report.SECTIONS` makes of that name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.diagnosis.report import SECTIONS

from levada.report.palette import palette, style_sheet

__all__ = ["page", "setup"]

STYLE = "levada-figure.css"


def page(source: str) -> str:
    """Return the page with its comments replaced.

    Args:
        source: the Markdown of the page.
    """
    for name, make in SECTIONS.items():
        if f"<!-- {name} -->" in source:
            source = source.replace(f"<!-- {name} -->", make())
    return source


def style() -> str:
    """Return the reports' style sheet, nested so that it is that of figures alone, with colours of the page's theme."""
    nested = f".levada-figure {{\n{style_sheet().replace(':root', '&')}\n}}\n"
    # The page has a button for light and dark, which counts more than what the system prefers.
    for theme, colours in palette().items():
        block = " ".join(f"--{name}: {colour};" for name, colour in colours.items())
        nested += f'body[data-theme="{theme}"] .levada-figure {{ color-scheme: {theme}; {block} }}\n'
    return nested


def setup(app: Any) -> dict[str, bool]:
    """Fill the page when it is read, which is at every build, and write the figures' style beside it."""

    def fill(app: Any, name: str, source: list[str]) -> None:
        if name == "verdicts":
            source[0] = page(source[0])

    def write(app: Any, exception: Exception | None) -> None:
        folder = Path(app.outdir) / "_static"
        if exception is None and folder.exists():
            (folder / STYLE).write_text(style(), encoding="utf-8")

    app.connect("source-read", fill)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["verdicts"])
    app.connect("build-finished", write)
    app.add_css_file(STYLE)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
