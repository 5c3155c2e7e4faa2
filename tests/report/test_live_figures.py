"""The figures of a page when its script runs, and when it does not: in a browser, from a file, without a request."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import make_sick, write_study
from tests.report.watched import write_watch
from tests.web.explorer_page import AXE, violations_by_scheme
from tests.web.visiting import browser, needs_browser

from levada.cli import main
from levada.report import script, write_html
from levada.report.embedded import heat_data
from levada.report.grid import MAX_CELLS, MAX_FINE_ROWS, Fine, Row
from levada.report.page import _template

__all__ = ["browser"]
WEB = Path(__file__).parents[2] / "web"
HOSTILE = "</script><script>alert(1)</script>"
HEAT = "[aria-roledescription='heat map']"
FIGURES = 11  # of which two are heat maps, and one has four panels
PANELS = 4
WAIT = 30_000  # milliseconds: the machine may be busy
built = pytest.mark.skipif(script.page_script() is None, reason="the pages are not built: make web")
Open = Callable[..., Any]


@pytest.fixture(autouse=True)
def pictures_alone() -> None:
    """Here pages have their script."""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A check with intervals, of which a layer has a hostile name and a gradient of zero, and a watched run."""
    folder = tmp_path_factory.mktemp("pages")
    report = make_sick()
    for block in report["blocks"]:
        block |= {"gradient_rms_low": 0.5 * block["gradient_rms"], "gradient_rms_high": 2 * block["gradient_rms"]}
    report["blocks"][4] |= {"gradient_rms": 0.0, "site": HOSTILE}
    return write_html([report, write_watch(folder / "run"), write_study(folder / "study")], folder / "page.html")


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Open]:
    """Open the page; it says nothing in the console, opens no dialog and asks for nothing but itself."""
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        if route.request.url == page_file.as_uri():
            route.continue_()
        else:
            route.abort()

    def opened(width: int = 1280, *, live: bool = True, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.route("**/*", answer)
        for event in ("console", "pageerror", "dialog"):
            page.on(event, lambda what: said.append(str(what)))
        page.goto(page_file.as_uri())
        if live:
            # Not by a condition in words, which the page's policy forbids to evaluate.
            page.locator("figure.moving canvas, figure.moving [role=slider]").nth(FIGURES + PANELS - 2).wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert set(asked) == {page_file.as_uri()}


def seen(page: Any, selector: str) -> int:
    count: int = page.eval_on_selector_all(selector, "all => all.filter(one => one.checkVisibility()).length")
    return count


def table(figure: Any) -> list[list[str]]:
    """Give the rows of the table that Python wrote beside a figure."""
    rows: list[list[str]] = figure.locator("details.data tr").evaluate_all(
        "all => all.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return rows


@built
@needs_browser
def test_lines_are_read_by_arrow_keys_and_say_what_the_table_says(visit: Open) -> None:
    page = visit()
    figure = page.locator("figure.live").first
    head, *rows = table(figure)
    assert head == ["block", "measured", "predicted by theory"]
    slider = figure.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    for row in rows[:6]:
        spoken = slider.get_attribute("aria-valuetext")
        value = row[1].partition(" [")[0]
        assert spoken == f"{row[0]}: measured {value}; predicted by theory {row[2]}"
        shown = figure.locator(".interactive .legend li").nth(1).inner_text()
        assert " ".join(shown.split()).replace("\xa0", " ") == f"measured {row[1]}"
        page.keyboard.press("ArrowRight")
    assert rows[4][0] == HOSTILE
    assert rows[4][1].startswith("0 [")
    words = "1 value (</script><script>alert(1)</script>) is exactly zero, marked at the lower edge."
    assert words in figure.inner_text()
    assert "The learning signal dies on its way back" in figure.locator("text.shaded").text_content()


@built
@needs_browser
def test_a_heat_map_is_read_by_arrow_keys_zoomed_and_says_what_the_table_says(visit: Open) -> None:
    page = visit()
    figure = page.locator("figure.live", has=page.locator(HEAT)).first
    head, *rows = table(figure)
    field, read = figure.locator(HEAT), figure.locator(".read")
    field.focus()
    for _ in range(14):
        page.keyboard.press("ArrowUp")
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    for row in rows[:4]:
        where, value = read.inner_text().split(": ")
        assert where == f"layers.{row[0]}, {head[1]}"
        assert value == row[1]
        page.keyboard.press("ArrowDown")
    whole = figure.get_by_role("button", name="Show all")
    assert whole.is_disabled()
    page.keyboard.press("+")
    assert not whole.is_disabled()
    whole.press("Enter")
    assert whole.is_disabled()


@built
@needs_browser
def test_a_zero_and_what_is_no_number_are_said_in_words(visit: Open) -> None:
    page = visit()
    figure = page.locator("figure.live", has=page.locator(HEAT)).first
    legend = figure.locator(".interactive .legend").inner_text()
    assert "exactly zero" in legend
    assert "NaN" in legend
    figure.locator("summary", has_text=re.compile("^Numbers$")).click()
    figure.locator(".sr-table td").first.wait_for()
    cells = figure.locator(".sr-table td").all_inner_texts()
    assert "NaN" in cells


@built
@needs_browser
@pytest.mark.parametrize("how", ["print", "without script"])
def test_print_and_who_runs_no_script_have_the_pictures(visit: Open, how: str) -> None:
    page = visit(live=how == "print", java_script_enabled=how == "print")
    if how == "print":
        assert (seen(page, "figure.live svg.chart"), seen(page, "figure.live svg.cells")) == (0, 0)
        assert seen(page, "figure.live canvas") == 2
        page.emulate_media(media="print")
    assert seen(page, "figure.live .still") == FIGURES
    assert seen(page, "figure.live svg.cells") == 2
    assert seen(page, "figure.live svg.chart.wide") == FIGURES - 3
    assert seen(page, "figure.live svg.chart.cell") == PANELS
    assert seen(page, "figure.live canvas, figure.live [role=slider], .of-moving") == 0
    assert seen(page, "figure.live details.data summary") == FIGURES


@built
@needs_browser
def test_panels_and_seeds_of_a_study_are_followed_like_other_lines(visit: Open) -> None:
    page = visit()
    panels = page.locator("figure.live", has=page.locator(".interactive .panels"))
    assert panels.count() == 1
    assert panels.locator(".interactive .of-panel").all_inner_texts() == [f"{n} blocks" for n in (10, 20, 50, 100)]
    slider = panels.get_by_role("slider").nth(2)
    assert slider.get_attribute("aria-label").startswith("Training loss: 50 blocks.")
    slider.focus()
    page.keyboard.press("End")
    spoken = slider.get_attribute("aria-valuetext")
    named, plain, residual = re.fullmatch(r"(\w+ [\d,]+): plain ([\d.]+); residual ([\d.]+)", spoken).groups()
    at = named.split()[-1].replace(",", "")
    last = [row for row in table(panels) if row[0] == "50 blocks" and row[-2].replace(",", "") == at]
    assert {row[1]: row[-1] for row in last} == {"plain": plain, "residual": residual}
    seeds = page.locator("figure.live", has=page.get_by_role("heading", name="Gradient by depth"))
    assert seeds.locator(".interactive path.thin").count() == 10
    assert len(seeds.locator(".interactive .legend li").all()) == 6  # the place, two medians, two laws, a reference


@built
@needs_browser
def test_no_figure_is_cut_on_paper(visit: Open) -> None:
    page = visit(680)  # what the margins leave of A4, at 96 pixels an inch, and of 267 mm in height
    page.emulate_media(media="print")
    boxes = page.locator("figure").evaluate_all(
        "all => all.map(one => [one.getBoundingClientRect().height, getComputedStyle(one).breakInside])"
    )
    assert len(boxes) > FIGURES
    assert all(height < 267 / 25.4 * 96 and inside == "avoid" for height, inside in boxes)
    rights = page.locator("figure svg, figure img").evaluate_all(
        "all => all.filter(one => one.checkVisibility()).map(one => one.getBoundingClientRect().right)"
    )
    assert max(rights) <= 680
    pages = re.findall(rb"/MediaBox\s*\[([^\]]+)\]", page.pdf(format="A4"))
    assert len(pages) >= 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 680


@built
@needs_browser
@pytest.mark.parametrize("width", [360, 1280, 3840])
def test_no_sideways_scrolling_nothing_that_axe_objects_to(visit: Open, width: int) -> None:
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if not AXE.exists():
        pytest.skip("axe-core is not installed: cd web && npm ci")
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert violations_by_scheme(page) == {}


@built
def test_the_policy_lets_in_the_script_of_the_page_and_no_other(page_file: Path) -> None:
    page = page_file.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert re.search(
        r"default-src &#39;none&#39;; style-src &#39;sha256-[^ ]+&#39;; script-src &#39;sha256-", policy[1]
    )
    assert "unsafe" not in policy[1]
    assert page.count("<script>") == 1
    assert page.count("</script>") == 1 + page.count('<script type="application/octet-stream+base64">') == 1 + FIGURES
    # A name is in blocks of base64 and in escaped text, and nowhere else.
    assert HOSTILE not in page


def test_without_the_script_the_page_is_pictures_and_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("levada.report.page.page_script", lambda: None)
    monkeypatch.setattr("levada.report.script.page_script", lambda: None)
    write_watch(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().err.splitlines() == [script.ABSENT]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "script-src" not in page
    assert page.count('<details class="data">') == page.count("<figure>") == 6


def test_the_script_is_read_whole_and_can_end_no_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "web" / "static" / "report"
    folder.mkdir(parents=True)
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    assert script.page_script() is None
    (folder / "report.js").write_text('"</script><b>"', encoding="utf-8")
    assert script.page_script() is None  # a style must be there too
    (folder / "report.css").write_text(".a::after { content: '</style>' }", encoding="utf-8")
    found = script.page_script()
    assert found is not None
    assert "</script" not in found.code
    assert "</style" not in found.style
    monkeypatch.undo()
    _, shared = _template(found)
    assert shared["script"] == found.code


@pytest.mark.parametrize(("sites", "samples"), [(100, 500), (512, 512), (3000, 90), (200, 1400)])
def test_a_map_is_no_larger_than_its_cells_may_be_and_one_that_fits_is_kept_whole(sites: int, samples: int) -> None:
    """Of numbers that are all noise, which nothing makes smaller; so a page of one run stays far below 10 MB."""
    draw = random.Random(0)
    noise = [10.0 ** draw.uniform(-30, 30) for _ in range(1009)]
    rows = (Row(j, j, [noise[(7 * i + 31 * j + i * j) % 1009] for i in range(sites)]) for j in range(samples))
    fine = Fine([f"layers.{i}" for i in range(sites)], rows, samples)
    cells = (len(fine.edges) - 1) * len(fine.columns)
    assert cells <= MAX_CELLS
    whole = sites <= MAX_FINE_ROWS and sites * samples <= MAX_CELLS
    assert fine.single == whole
    assert (cells == sites * samples) == whole
    assert len(heat_data(fine, "The gradient")) < 2.5e6


def test_the_golden_blocks_are_what_python_writes() -> None:
    """The bytes depend on the version of zlib; what is deflated does not."""
    sys.path.insert(0, str(WEB / "golden"))
    try:
        import report as golden
    finally:
        sys.path.pop(0)
    kept, made = json.loads(golden.FILE.read_text(encoding="utf-8")), json.loads(golden.dumped(golden.vectors()))
    assert kept.keys() == made.keys()
    for name in kept:
        if name in ("heat", "merged", "lines", "panels"):
            assert golden.inflated(kept[name]) == golden.inflated(made[name])
        else:
            assert kept[name] == made[name]
