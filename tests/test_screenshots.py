"""The pictures of the pages: the script still takes them, of every page, and the documentation shows what it chose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.web.explorer_page import needs_page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
images = pytest.importorskip("PIL.Image", reason="pillow is not installed")

from docs.screenshots import IMAGES, MOST, PAGES, browsing, main, take  # noqa: E402

DOCS = IMAGES.parent


def test_every_page_is_taken_and_each_name_once() -> None:
    assert {
        "depth",
        "train",
        "time",
        "mixing",
        "live-list",
        "live-run",
        "live-compare",
        "report",
        "report-check",
    } < set(PAGES)
    assert [f"lesson-{n}" in PAGES for n in range(1, 8)] == [True] * 7
    chosen = [shot.image for shot in PAGES.values() if shot.image]
    assert len(chosen) == len(set(chosen)) == 9


@pytest.mark.parametrize("name", [shot.image for shot in PAGES.values() if shot.image])
def test_what_was_chosen_is_small_and_shown_with_words_for_it(name: str) -> None:
    assert (IMAGES / name).stat().st_size <= MOST
    with images.open(IMAGES / name) as picture:
        assert picture.width == 1280
    pages = [DOCS.parent / "README.md", *(DOCS / f"{page}.md" for page in ("explore", "live", "report"))]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = re.findall(rf"!\[([^\]]+)\]\((?:docs/)?images/{re.escape(name)}\)", text)
    assert shown
    assert min(map(len, shown)) > 30


def browsed(test: Any) -> Any:
    """Leave a test out where there is no browser, or no built page."""
    for mark in needs_page:
        test = mark(test)
    return test


@browsed
def test_the_script_takes_a_page(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--page", "mixing", "--width", "360", "--scheme", "dark"])
    assert [file.name for file in tmp_path.iterdir()] == ["mixing-360-dark.png"]
    with images.open(tmp_path / "mixing-360-dark.png") as picture:
        assert picture.width == 360
        assert picture.height > 1000
        assert picture.convert("RGB").getpixel((1, 1)) == (18, 23, 26)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 100


@browsed
def test_a_picture_of_the_documentation_is_cut_to_what_was_chosen(tmp_path: Path) -> None:
    shot, file = PAGES["mixing"], tmp_path / "mixing.webp"
    home = (Path(__file__).parents[1] / "src/levada/web/static/single/explore.html").as_uri()
    with browsing() as browser:
        take(browser, shot, home, 1280, "light", tmp_path / "all.png", file)
    assert file.stat().st_size <= MOST
    with images.open(file) as picture:
        assert picture.size == (1280, shot.height)
