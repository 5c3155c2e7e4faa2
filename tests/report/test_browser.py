"""The page in a browser: quiet, alone, and no wider than a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.web.visiting import browser, needs_browser

from levada.report import write_html
from levada.runs import RunWriter

__all__ = ["browser"]
pytestmark = needs_browser


@pytest.fixture
def page_file(tmp_path: Path, study_run: Path, healthy_report: Any, sick_report: Any) -> Path:
    report = sick_report(model="a_rather_long_module_path.with_many.parts:and_a_function_name_that_does_not_end_soon")
    report["blocks"][4]["gradient_rms"] = 0.0
    return write_html([report, study_run, healthy_report()], tmp_path / "page.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_error_no_request_no_sideways_scrolling(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    seen = page.eval_on_selector_all(
        "svg.chart", "all => all.filter(one => one.checkVisibility()).map(one => one.classList[1])"
    )
    assert set(seen) == ({"wide", "cell"} if width > 640 else {"narrow", "cell"})
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(252, 251, 248)" if scheme == "light" else "rgb(18, 23, 26)")
    # The page's policy lets its images in, and they are as wide as they have room.
    images = page.eval_on_selector_all(
        ".pictures img", "all => all.map(one => [one.complete, one.naturalWidth, one.naturalHeight, one.clientWidth])"
    )
    assert [found[:3] for found in images] == [[True, 160, 120]] * 5
    assert all(100 < shown <= width for *_, shown in images)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    page.close()


CONTRAST = """() => {
  const channel = c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number)
    return .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b) }
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
  const paper = light(getComputedStyle(document.body).backgroundColor)
  const words = [...document.querySelectorAll('h1,h2,h3,p,figcaption,dt,dd,li,a,.badge,.tag,summary,text')]
  const lines = [...document.querySelectorAll('.line')]
  return [Math.min(...words.map(w => ratio(paper, light(getComputedStyle(w)[w.tagName == 'text' ? 'fill' : 'color'])))),
          Math.min(...lines.map(l => ratio(paper, light(getComputedStyle(l).stroke))))]
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_lines_stand_out_from_the_paper(browser: Any, page_file: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(page_file.as_uri())
    words, lines = page.evaluate(CONTRAST)
    assert words >= 4.5  # WCAG 2.2, success criterion 1.4.3
    assert lines >= 3.0  # and 1.4.11
    page.close()


def test_a_name_at_a_line_is_in_the_legend_only_on_a_phone(browser: Any, tmp_path: Path, study_run: Path) -> None:
    path = write_html([study_run], tmp_path / "page.html")
    for width, shown in ((1200, 0), (390, 2)):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(path.as_uri())
        seen = "all => all.filter(one => one.checkVisibility()).length"
        assert page.eval_on_selector_all(".at-line", seen) == shown
        assert page.eval_on_selector_all("text.name", seen) == 2 - shown
        page.close()


def test_on_a_phone_a_claim_has_no_column_out_of_sight_and_no_broken_number(browser: Any, tmp_path: Path) -> None:
    told = {
        f"plain sigmoid, case {i}: {kind}": 9.31e-18 * 10**i for i in range(9) for kind in ("measured", "predicted")
    }
    with RunWriter.create(tmp_path / "run", kind="study", name="s") as writer:
        writer.append("claim", name="c", statement="s", status="held", numbers={**told, "largest deviation": 0.07148})
    path = write_html([tmp_path / "run"], tmp_path / "page.html")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(path.as_uri())
    assert page.eval_on_selector_all(".claim .scroll", "all => all.every(one => one.scrollWidth <= one.clientWidth)")
    # A cell of a number is one line high, with its heading two.
    high = "one.getBoundingClientRect().height / parseFloat(getComputedStyle(one).lineHeight)"
    lines = f"all => Math.max(...all.map(one => {high}))"
    assert page.eval_on_selector_all(".claim td:not(thead td)", lines) < 2.2
    assert page.eval_on_selector_all(".numbers tbody td", "all => all.length") == 27
    page.close()


def test_on_a_phone_the_table_of_all_claims_stays_in_sight(browser: Any, tmp_path: Path, study_run: Path) -> None:
    page = browser.new_page(viewport={"width": 320, "height": 900})
    page.goto(write_html([study_run, study_run], tmp_path / "page.html").as_uri())
    rights = page.eval_on_selector_all(
        ".standings td, .standings .badge", "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert len(rights) > 4
    assert max(rights) <= 320
