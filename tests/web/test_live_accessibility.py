"""The live page: by keys alone, from a phone to a wide screen, beside tables, still, in the palette's colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.web.accessible import colours, moving, unreached, untold, wide
from tests.web.explorer_page import AXE, violations

from levada.report.palette import palette
from levada.runs import RunWriter
from levada.web.folder import identity

from .conftest import write_check, write_inside, write_pictures, write_study, write_watched
from .live import Served, needs_page, server, visit, write_deep
from .test_live import HEATS
from .visiting import Visit, browser, rests

__all__ = ["browser", "server", "visit"]
pytestmark = needs_page
PAGES = ["list", "run", "compare", "check"]


def write_findings(folder: Path) -> None:
    """Write a check of two findings that the same change repairs."""
    remedy = {"name": "residual", "before": {"gradient_decay": 0.5}, "after": {"gradient_decay": 1.0}, "verified": True}
    found = {"severity": "error", "status": "fired", "claim": "It is lost.", "evidence": {}, "remedies": [remedy]}
    findings = [{**found, "rule": rule} for rule in ("vanishing_gradient", "vanishing_signal")]
    with RunWriter.create(folder, kind="check", name="twice") as writer:
        writer.append("report", title="", report={"schema": 1, "verdict": "error", "blocks": [], "findings": findings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("live")
    write_watched(root / "watched")
    write_check(root / "checked")
    write_deep(root / "deep" / "half", 0.5)
    write_deep(root / "deep" / "quarter", 0.25, names=[f"layers.{i}" for i in range(40)])
    for name in ("one", "two"):
        write_inside(write_watched(root / "inside" / name))
    write_findings(root / "twice")
    write_study(root / "study")
    write_pictures(root / "pictures")
    return root


def opened(visit: Visit, server: Served, what: str, **options: Any) -> Any:
    links = {
        "list": "#/",
        "run": server.run("watched", "?step=200&layer=2"),
        "compare": server.run("deep/half", f"?with={identity('deep/quarter')}&step=300&layer=3"),
        "check": server.run("checked"),
        "inside": server.run("inside/one", f"?with={identity('inside/two')}"),
        "findings": server.run("twice"),
        "study": server.run("study"),
        "pictures": server.run("pictures"),
    }
    ready = {"list": "tbody a", "check": ".mixes li", "findings": "article td", "study": "h1", "pictures": "figure img"}
    page = visit(links[what], **options)
    page.locator(ready.get(what, HEATS)).first.wait_for()
    rests(page)
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


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: cd web && npm ci")
@pytest.mark.parametrize("what", ["inside", "findings", "study", "pictures"])
def test_axe_finds_nothing_where_parts_come_twice(visit: Visit, server: Served, what: str) -> None:
    page = opened(visit, server, what, width=390, color_scheme="dark", bypass_csp=True)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert wide(page) == 0
    assert violations(page) == ""


# What is drawn for a window is measured before it could be drawn anew, as on paper.
CUT = """() => {
  document.querySelector('main').style.width = '400px';
  return [...document.querySelectorAll('figure :is(svg, canvas)')].filter(one => one.getBoundingClientRect().right
    > one.closest('figure').getBoundingClientRect().right + 1).map(one => one.outerHTML.slice(0, 80));
}"""


def test_on_paper_figures_are_whole_and_light_and_what_is_pressed_is_left_out(visit: Visit, server: Served) -> None:
    page = opened(visit, server, "run", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # a canvas is painted for it
    assert colours(page) == palette()["light"]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert colours(page) == palette()["dark"]
    page.emulate_media(media="print")
    assert page.locator("button, select, input, nav, .screen").locator("visible=true").count() == 0
    assert page.evaluate(CUT) == []
