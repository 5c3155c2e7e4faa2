"""The tables of the page on accessibility, made of the palette when the documentation is built."""

from __future__ import annotations

from typing import Any

from docs.colours import SIGHTS, contrast, distances

from levada.report.palette import NUM_COLOURS, palette

__all__ = ["SECTIONS", "page", "setup"]

_WORDS = ("ink", "soft", "water", "error", "warn", "good", "corrected")
_GROUNDS = ("paper", "raised", "code")


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]])


def contrasts() -> str:
    """Return the least contrast of words on each ground, and of lines on paper."""
    rows = []
    for theme, colours in sorted(palette().items(), reverse=True):
        for ground in _GROUNDS:
            least, name = min((contrast(colours[name], colours[ground]), name) for name in _WORDS)
            rows.append([theme, f"words on {ground}", f"{least:.2f} ({name})", "4.5"])
        for kind, words in (("c", "measured lines"), ("p", "predicted lines")):
            names = [f"{kind}{i}" for i in range(NUM_COLOURS)]
            least, name = min((contrast(colours[name], colours["paper"]), name) for name in names)
            rows.append([theme, f"{words} on paper", f"{least:.2f} ({name})", "3 for lines, 4.5 for a name at one"])
    return _table(["theme", "what", "least contrast", "WCAG 2.2 asks"], rows)


def apart() -> str:
    """Return the least distance of two measured lines for each sight, in both themes."""
    rows = []
    for sight in SIGHTS:
        row = [sight]
        for theme in ("light", "dark"):
            names = {palette()[theme][f"c{i}"]: f"c{i}" for i in range(NUM_COLOURS)}
            least, one, other = distances(list(names), sight)[0]
            row.append(f"{least:.1f} ({names[one]}, {names[other]})")
        rows.append(row)
    return _table(["sight", "light", "dark"], rows)


SECTIONS = {"contrast": contrasts, "distance": apart}


def page(source: str) -> str:
    """Return the page with its comments replaced.

    Args:
        source: the Markdown of the page.
    """
    for name, make in SECTIONS.items():
        source = source.replace(f"<!-- {name} -->", make())
    return source


def setup(app: Any) -> dict[str, bool]:
    """Fill the page when it is read, which is at every build."""

    def fill(app: Any, name: str, source: list[str]) -> None:
        if name == "accessibility":
            source[0] = page(source[0])

    app.connect("source-read", fill)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: ["accessibility"])
    return {"parallel_read_safe": True, "parallel_write_safe": True}
