"""Every tab of the explorer: by keys alone, from a phone to a wide screen, with tables, still, in its colours."""

from __future__ import annotations

from typing import Any

import pytest
from tests.web.accessible import colours, moving, unreached, untold, wide
from tests.web.explorer_page import AXE, Visit, browser, needs_page, violations_by_scheme, visit
from tests.web.visiting import rests

from levada.report.palette import palette

pytestmark = needs_page
__all__ = ["browser", "visit"]

LINKS = {
    "depth": "expert=1&connections=plain,residual,post_norm,highway,dense,hyper,manifold,identity,attention",
    "train": "tab=train&trainDepth=6&trainSteps=60&trainWidth=12&expert=1",
    "time": "tab=time&timeSteps=60&expert=1",
    "mixing": "tab=mixing&connections=hyper,manifold&expert=1",
    **{f"lesson {n}": f"tab=lessons&chapter={n}&expert=1" for n in range(1, 8)},
}
READY = {"depth": ".told tbody tr:nth-child(9)", "time": ".after tbody tr", "mixing": ".reading"}


def opened(visit: Visit, tab: str, width: int = 1280, **options: Any) -> Any:
    page = visit(LINKS[tab], width=width, **options)
    if tab == "train":
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_role("button", name="Train again").wait_for(timeout=120_000)
        page.locator("canvas").last.wait_for()
    else:
        page.locator(READY.get(tab, "[data-question]")).first.wait_for()
    rests(page)
    return page


@pytest.mark.parametrize("width", [360, 3840])
@pytest.mark.parametrize("tab", LINKS)
def test_no_tab_is_wider_than_its_screen_and_a_wide_one_is_used(visit: Visit, tab: str, width: int) -> None:
    page = opened(visit, tab, width)
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert wide(page) == 0
    if width == 3840:
        assert page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") >= 19.9
        assert page.locator("main").bounding_box()["width"] >= 2900


@pytest.mark.parametrize("tab", LINKS)
def test_keys_reach_all_figures_have_tables_and_nothing_moves(visit: Visit, tab: str) -> None:
    page = opened(visit, tab, reduced_motion="reduce")
    assert unreached(page) == []
    assert untold(page) == []
    assert moving(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_the_palette_s_by_system_and_by_choice(visit: Visit, scheme: str) -> None:
    other = "dark" if scheme == "light" else "light"
    page = opened(visit, "depth", color_scheme=scheme)
    assert colours(page) == palette()[scheme]
    page.get_by_label("Colours").select_option(other)
    assert colours(page) == palette()[other]
    page.emulate_media(media="print", color_scheme=scheme)  # paper is light, whatever was chosen
    assert colours(page) == {**palette()["light"], "paper": "#fff", "raised": "#fff"}


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: cd web && npm ci")
def test_axe_finds_nothing_with_all_nine_connections(visit: Visit) -> None:
    page = opened(visit, "depth")
    marks = page.locator(".told tbody .name svg").evaluate_all(
        "all => all.map(one => [one.querySelector('.line').getAttribute('class'),"
        " getComputedStyle(one.querySelector('.mark')).fill, getComputedStyle(one.querySelector('.line')).stroke,"
        " one.querySelector('.mark').getAttribute('d')].join(' '))"
    )
    assert len(marks) == len(set(marks)) == 9
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert violations_by_scheme(page) == {}
