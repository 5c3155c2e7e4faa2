"""The script that makes a page's figures interactive: the pages' own components, built by `make web`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Final

__all__ = ["ABSENT", "Script", "page_script"]

ABSENT: Final = (
    "The figures are pictures without zoom and readout, as the pages' script is not built: in a clone, run make web."
)


@dataclass(frozen=True, slots=True)
class Script:
    """What goes into a page: `code` of a classic script, and the `style` of what it draws."""

    code: str
    style: str


def page_script() -> Script | None:
    """Read the script that lies in the package; None where the pages are not built."""
    # Not by the name of levada.web, which is imported by nothing here.
    folder = resources.files("levada").joinpath("web", "static", "report")
    try:
        code, style = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Script(code.replace("</script", "<\\/script"), style.replace("</style", "<\\/style"))
