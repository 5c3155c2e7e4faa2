"""The live page where things are not as they were: another server or address, many windows, a pointer that rests."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from levada.runs import RunWriter
from levada.web.folder import identity
from levada.web.pages import STATIC

from .live import Served, write_deep
from .visiting import Visit, browser, expect, needs_browser, rests, visits, wait

__all__ = ["browser"]
pytestmark = [
    needs_browser,
    pytest.mark.skipif(not (STATIC / "index.html").exists(), reason="the pages are not built: make web"),
]
HEATS = "[aria-roledescription='heat map']"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    write_deep(folder / "deep", 0.5, steps=range(0, 200, 10))
    return folder


@contextlib.contextmanager
def serving(folder: Path, *words: str) -> Iterator[Served]:
    served = Served(folder, *words)
    try:
        yield served
    finally:
        served.kill()


@pytest.fixture
def served(runs: Path) -> Iterator[Served]:
    with serving(runs) as found:
        yield found


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Visit]:
    with visits(browser, f"http://127.0.0.1:{served.port}/", "h1", quiet=False) as opened:
        yield opened


def test_a_server_that_was_started_anew_is_told_in_words_and_let_in_again(browser: Any, runs: Path) -> None:
    with (
        serving(runs, "--token") as served,
        visits(browser, f"http://127.0.0.1:{served.port}/", "h1", quiet=False) as visit,
    ):
        page = visit(served.token)
        expect(page.locator("tbody th a")).to_have_text(["deep"])
        # What shows a run comes a second after the list; what is asked for of a dead server is gone until a reload.
        asked = "performance.getEntriesByType('resource').some(one => /RunPage.*js/.test(one.name))"
        wait(page, lambda: page.evaluate(asked))
        rests(page)
        served.kill()
        expect(page.locator(".connection")).to_contain_text("not connected")
        served.start()
        told = page.locator("[role=alert]")
        expect(told).to_contain_text("The server was started anew, and has another token")
        expect(told).to_contain_text("Open the address that levada serve printed")
        expect(page.locator("tbody th a")).to_have_text(["deep"])
        for words in ("bearer", "Failed to fetch", "401"):
            expect(page.locator("main")).not_to_contain_text(words)
        page.get_by_role("link", name="deep").click()
        expect(page.locator("main")).to_contain_text("Open the address that it printed")
        # Another window of the browser is let in, and this one with it.
        other = page.context.new_page()
        other.goto(f"http://127.0.0.1:{served.port}/{served.token}")
        expect(other.locator("tbody th a")).to_have_text(["deep"])
        expect(told).to_have_count(0)
        expect(page.locator(".connection")).to_contain_text("live")
        page.locator(HEATS).first.wait_for()


def test_a_run_that_is_not_there_is_told_with_a_way_to_the_list(visit: Visit) -> None:
    page = visit("/run/nosuch")
    alert = page.locator("[role=alert]")
    expect(alert).to_contain_text("There is no run named 'nosuch'.")
    page.goto(page.url.replace("nosuch", identity("gone")))
    expect(alert).to_contain_text(f"There is no run {identity('gone')}: it may have been moved.")
    page.get_by_role("link", name="All runs").click()
    expect(page.locator("tbody th a")).to_have_text(["deep"])


def test_an_address_that_says_more_than_the_page_knows_is_told(visit: Visit) -> None:
    page = visit("/nosuch?sort=name&color=red")
    told = page.locator(".notice[role=status]")
    expect(told).to_contain_text(
        "The address has what this page cannot use, and is read without it: nosuch, color=red."
    )
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("run")
    page.get_by_role("link", name="deep").click()
    page.locator(HEATS).first.wait_for()
    expect(told).to_have_count(0)
    page.goto(f"{page.url}?step=9&from=x")
    expect(told).to_contain_text("without it: from=x.")


def test_many_windows_share_one_stream(visit: Visit, served: Served, runs: Path) -> None:
    first = visit()
    context = first.context
    pages = [first, *(context.new_page() for _ in range(7))]
    for page in pages[1:]:
        page.goto(f"http://127.0.0.1:{served.port}/")
    for page in pages:
        expect(page.locator(".connection")).to_contain_text("live")
    write_deep(runs / "second", 0.5, steps=range(0, 100, 10))
    for page in pages:
        expect(page.locator("tbody th a", has_text="second")).to_have_count(1)
    first.close()  # it was the first that listened; the others go on, and still have connections for what they ask
    write_deep(runs / "third", 0.5, steps=range(0, 100, 10))
    for page in pages[1:]:
        page.locator("tbody th a", has_text="third").click()
        page.locator(HEATS).first.wait_for()


def test_the_readout_follows_a_run_that_grows_under_a_pointer_that_rests(
    visit: Visit, runs: Path, served: Served
) -> None:
    with RunWriter.create(runs / "grows", kind="watch", name="grows") as writer:

        def grow(first: int, stop: int) -> None:
            writer.append("loss", steps=list(range(first, stop)), values=[4.0 - i / 1000 for i in range(first, stop)])

        grow(0, 40)
        page = visit(served.run("grows"))
        plot = page.get_by_role("figure", name="The loss", exact=True)
        plot.locator(".u-over").hover()  # in the middle, once it stays where it is
        told = plot.locator(".legend")
        expect(told).to_contain_text(re.compile(r"step (19|20)\b"))
        grow(40, 400)  # so many that points are no longer drawn one by one, and the figure is made anew
        expect(told).to_contain_text(re.compile(r"step (199|20[01])\b"))


def test_what_is_held_out_is_drawn_though_no_step_came_after_it(visit: Visit, runs: Path, served: Served) -> None:
    with RunWriter.create(runs / "training", kind="train", name="training", config={"run": {"steps": 40}}) as writer:
        losses = [4.0 - i / 40 for i in range(40)]
        writer.append("losses", first=0, loss=losses, gradient_norm=losses, lr=losses)
        writer.append("evaluation", step=10, loss=7.25)
        page = visit(served.run("training", "?step=20"))
        told = page.get_by_role("figure", name="The loss", exact=True).locator(".legend")
        expect(told).to_contain_text("7.25")
        writer.append("evaluation", step=20, loss=7.125)  # of a step whose loss was written while it was computed
        expect(told).to_contain_text("7.125")


def test_an_explorer_shows_no_runs_and_says_where_they_are(browser: Any) -> None:
    with serving(None) as served, visits(browser, f"http://127.0.0.1:{served.port}/", "h1") as visit:
        page = visit()
        expect(page.locator(".empty")).to_contain_text("This server shows the explorer, and no runs.")
        expect(page.locator(".empty")).to_contain_text("levada serve FOLDER")
        expect(page.locator("main")).not_to_contain_text("this folder")
