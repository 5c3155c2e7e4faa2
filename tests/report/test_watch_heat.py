"""Heat pictures of a watched run: every cell once, merged without hiding what is bad, and whole in a browser."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.report.test_page import Page
from tests.report.watched import cells_of, write_watch
from tests.web.visiting import browser, needs_browser

from levada.report import render_report, write_html
from levada.report.grid import MAX_COLUMNS, MAX_ROWS, Grid, Row, gather
from levada.report.heat import NUM_LEVELS, heat

__all__ = ["browser"]


def test_heat_pictures_tell_in_words_what_they_show(watched: Path) -> None:
    page = Page(render_report([watched]))
    told = [dict(attrs) for tag, attrs in page.tags if tag == "svg" and "cells" in (dict(attrs).get("class") or "")]
    assert len(told) == 2
    gradient = str(told[0]["aria-label"])
    assert gradient.startswith("gradient, root mean square per element by block and step; lowest ")
    assert re.search(r"lowest \d\S* at layers\.0, step \d+; highest \d\S* at layers\.1\d, step \d+", gradient)
    assert gradient.endswith("1 of 480 cells exactly zero; 1 of 480 cells NaN or infinite")
    assert told[0]["viewbox"] == "0 0 40 12"


def test_a_heat_picture_holds_every_cell_once() -> None:
    draw = random.Random(0)
    values = (math.nan, math.inf, -math.inf, -5.0, -4.9, 0.0, -2.5)
    cells = tuple(tuple(draw.choice(values) for _ in range(23)) for _ in range(7))
    names = tuple((f"b{i}", f"b{i}") for i in range(7))
    grid = Grid(names, tuple((j, j) for j in range(23)), cells)
    levels = {math.inf: "hx", -math.inf: "hz", -5.0: "h0", -4.9: "h0", 0.0: f"h{NUM_LEVELS - 1}", -2.5: "h8"}
    wanted = [["" if math.isnan(v) else levels[v] for v in row] for row in cells]
    assert cells_of(heat(grid, "gradient"), 7, 23) == wanted


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40, 101, 200])
def test_labels_of_a_heat_picture_are_as_far_apart_as_their_cells(count: int) -> None:
    grid = Grid((("a", "a"),), tuple((20 * j, 20 * j) for j in range(count)), ((0.0,) * count,))
    drawn = heat(grid, "gradient")
    items = re.findall(r"<li>(?:<span[^>]*>([^<]*)</span>)?</li>", drawn[drawn.index("heat-columns") :])
    labelled = [j for j, text in enumerate(items) if text]
    assert len(items) == count
    assert labelled[0] == 0
    assert len({b - a for a, b in pairwise(labelled)}) <= 1
    assert min(count, 3) - 1 <= len(labelled) <= 5
    assert all(items[j] == f"{20 * j:,}" for j in labelled)


def test_what_hardly_changes_looks_as_if_it_hardly_changes() -> None:
    grid = Grid((("a", "a"), ("b", "b")), ((0, 0),), ((0.0,), (0.1,)))
    levels = {cells_of(heat(grid, "signal"), 2, 1)[i][0] for i in range(2)}
    assert levels in ({"h7"}, {"h8"}, {"h7", "h8"})


@pytest.mark.parametrize("sites", [1, MAX_ROWS, MAX_ROWS + 1, 1000])
@pytest.mark.parametrize("steps", [1, MAX_COLUMNS, MAX_COLUMNS + 1, 777])
def test_merging_keeps_the_size_and_hides_nothing_bad(sites: int, steps: int) -> None:
    def values(j: int) -> list[float]:
        return [0.0 if (i, j) == (sites // 3, steps // 3) else 100.0 for i in range(sites)]

    bad = [0.0] * (sites - 1) + [0.5]
    rows = [Row(2 * j, 2 * j, values(j), bad if j == steps - 1 else ()) for j in range(steps)]
    grid = gather([f"b{i}" for i in range(sites)], rows, steps)
    assert len(grid.rows) <= MAX_ROWS
    assert len(grid.columns) <= MAX_COLUMNS
    assert grid.columns[0][0] == 0
    assert grid.columns[-1][1] == 2 * (steps - 1)
    assert grid.rows[-1][1] == f"b{sites - 1}"
    assert grid.count(math.inf) == 1
    assert grid.cells[-1][-1] == math.inf
    assert grid.count(-math.inf) == (0 if (sites, steps) == (1, 1) else 1)
    rest = {cell for row in grid.cells for cell in row if math.isfinite(cell)}
    assert all(cell == pytest.approx(2.0) for cell in rest)


def test_a_stretch_shows_the_zeros_and_infinities_that_its_mean_hides() -> None:
    rows = [Row(0, 300, [1.0, 1.0, 1.0], (), [0.0, 0.5, 0.5], [2.0, math.inf, 2.0])]
    assert gather(["a", "b", "c"], rows, 1).cells == ((-math.inf,), (math.inf,), (0.0,))


def test_what_was_not_measured_is_left_empty() -> None:
    rows = [Row(0, 0, [math.nan, 1.0], [math.nan, 0.0]), Row(20, 20, [10.0, math.nan], [0.0, math.nan])]
    grid = gather(["a", "b"], rows, 2)
    assert [[repr(cell) for cell in row] for row in grid.cells] == [["nan", "1.0"], ["0.0", "nan"]]


def test_the_largest_page_stays_small(tmp_path: Path) -> None:
    # Noise, in which hardly any neighbours are alike.
    folder = write_watch(tmp_path / "run", depth=240, samples=400, noise=2.0)
    size = write_html([folder], tmp_path / "page.html").stat().st_size
    assert 200_000 < size < 1_000_000


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_in_a_browser_the_pictures_have_their_colours_and_nothing_is_cut(
    browser: Any, watched: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    file = write_html([watched], tmp_path / "page.html")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.eval_on_selector_all("svg.cells", "all => all.map(one => [one.clientWidth, one.clientHeight])")
    assert len(boxes) == 2
    assert all(0.5 * min(width, 900) < wide <= width and high > 200 for wide, high in boxes)
    colours = page.eval_on_selector_all(
        "svg.cells path", "all => Object.fromEntries(all.map(one => [one.classList[0], getComputedStyle(one).stroke]))"
    )
    assert len(set(colours.values())) == len(colours) > 8
    labels = page.eval_on_selector_all(
        ".heat-columns span",
        "all => all.filter(l => l.checkVisibility()).map(l => l.getBoundingClientRect()).map(b => [b.left, b.right])",
    )
    for (_, right), (left, _) in pairwise(labels):
        assert right < left or left < right - 100  # they do not touch; the next picture begins anew
    for axis, end in (("columns", "left"), ("rows", "top")):
        ends = page.eval_on_selector_all(
            ".heat",
            """(all, [axis, end]) => all.map(one => {
                const box = one.querySelector("svg.cells").getBoundingClientRect(), size = axis == "rows" ? box.height
                    : box.width, items = [...one.querySelectorAll(`.heat-${axis} li`)];
                return [items.length, items.map(li => (li.getBoundingClientRect()[end] - box[end]) / size)];
            })""",
            [axis, end],
        )
        for count, places in ends:
            assert count == {"columns": 40, "rows": 12}[axis]
            assert all(abs(place - i / count) < 0.01 for i, place in enumerate(places))
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    page.close()
