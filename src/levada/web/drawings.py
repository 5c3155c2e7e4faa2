"""The figures of a check or a study: those of the report, with the numbers that its page's script reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from levada.report.page import sections_of
from levada.web.folder import RefusedError
from levada.web.opened import Opened, opened
from levada.web.pictures import Drawing, Drawings, Image, Numbers
from levada.web.shapes import plain

__all__ = ["drawings_of", "drawn_in", "last_section"]

_DRAWN: Final = ("check", "study")  # kinds of sections; the others have pictures of their own
_MAX_DRAWINGS: Final = 64
_MAX_LETTERS: Final = 2**24  # of all images of an answer, in base64


def drawings_of(path: Path) -> Drawings:
    """Give what the report draws of a run's last check, or of a study.

    Args:
        path: the run's folder.

    Raises:
        RefusedError: if it draws nothing.
    """
    run = opened(path)
    section = last_section(run)
    found = [_drawing(one, finding) for one, finding in _figures(section)]
    left = _MAX_LETTERS
    for one in found[:_MAX_DRAWINGS]:
        left -= sum(len(image.png) for image in one.images)
        if left < 0 and one.images:
            one.images, one.missing = (
                [],
                "Its images are in `levada report`: together they are too large for this page.",
            )
    if not found:
        raise RefusedError(404, "The run has no figures of this kind: checks of two blocks or more have, and studies.")
    return Drawings(drawings=found[:_MAX_DRAWINGS], total=len(found))


def drawn_in(section: Mapping[str, Any]) -> bool:
    """Say whether a section of the report has such figures.

    Args:
        section: as `sections_of` gives it.
    """
    return next(_figures(section), None) is not None


def last_section(run: Opened) -> Mapping[str, Any]:
    """Give what the report says of a run, of several checks in it the last.

    Args:
        run: any.
    """
    return sections_of(cast(Any, run), drawn=False)[-1]


def _figures(section: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], int | None]]:
    """Give pictures and the figures that have numbers; behind them those of findings, each with the finding's place."""
    if section["kind"] not in _DRAWN:
        return
    view = section["view"]
    pictures = ((one["picture"], i) for i, one in enumerate(view.get("findings") or ()))
    for figure, finding in (*((figure, None) for figure in view["figures"]), *pictures):
        numbers = figure and (figure.get("data") or (figure.get("table") or {}).get("rows"))
        if numbers or (figure and figure.get("kind") == "picture"):
            yield figure, finding


def _drawing(figure: Mapping[str, Any], finding: int | None) -> Drawing:
    table = figure.get("table") or {"head": [], "rows": [], "total": 0}
    return Drawing(
        title=plain(str(figure["title"])),
        caption=plain(str(figure["caption"])),
        data=figure.get("data") or "",
        table=Numbers(head=plain(table["head"]), rows=plain(table["rows"]), total=table["total"]),
        finding=finding,
        images=[Image(**plain(one)) for one in figure.get("images") or ()],
        missing=plain(str(figure.get("missing") or "")),
    )
