"""The live page: by keys alone, from a phone to a wide screen, beside tables, still, in the palette's colours."""

from __future__ import annotations

from typing import Any

import pytest
from tests.web.accessible import colours, moving, unreached, untold, wide

from levada.report.palette import palette
from levada.web.folder import identity

from .live import Served
from .test_live import HEATS, browser, folder, pytestmark, server, visit
from .visiting import Visit

__all__ = ["browser", "folder", "pytestmark", "server", "visit"]
PAGES = ["list", "run", "compare", "check"]


def opened(visit: Visit, server: Served, what: str, **options: Any) -> Any:
    links = {
        "list": "#/",
        "run": server.run("watched", "?step=200&layer=2"),
        "compare": server.run("deep/half", f"?with={identity('deep/quarter')}&step=300&layer=3"),
        "check": server.run("checked"),
    }
    page = visit(links[what], **options)
    page.locator({"list": "tbody a", "check": ".mixes li"}.get(what, HEATS)).first.wait_for()
    page.wait_for_timeout(700)
    return page


@pytest.mark.parametrize("width", [360, 3840])
@pytest.mark.parametrize("what", PAGES)
def test_no_page_is_wider_than_its_screen_and_a_wide_one_is_used(
    visit: Visit, server: Served, what: str, width: int
) -> None:
    page = opened(visit, server, what, width=width)
    assert wide(page) == 0
    if width == 3840:
        assert page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") >= 19.9
        assert page.locator("main").bounding_box()["width"] >= 2900


@pytest.mark.parametrize("what", PAGES)
def test_keys_reach_all_figures_have_tables_and_nothing_moves(visit: Visit, server: Served, what: str) -> None:
    page = opened(visit, server, what, reduced_motion="reduce")
    assert unreached(page) == []
    assert untold(page) == []
    assert moving(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_the_palette_s_by_system_and_by_choice(visit: Visit, server: Served, scheme: str) -> None:
    page = opened(visit, server, "list", color_scheme=scheme)
    assert colours(page) == palette()[scheme]
    other = "dark" if scheme == "light" else "light"
    page.get_by_label("Colours").select_option(other)
    assert colours(page) == palette()[other]
