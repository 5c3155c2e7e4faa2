"""Pages in a browser: opened by a link, with nothing said on the console and nothing asked of another site."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

__all__ = ["WAIT", "Visit", "boxes", "browser", "expect", "needs_browser", "rests", "visits", "wait"]

# Of the same engine, the first draws no window around a page: a visit takes it less than half the processor time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
WAIT = 60_000
"""Milliseconds that a page has for what is waited for: the machine may be busy."""
ENDLESS = re.compile(r"/events$|/session$|/assets/stream-[^/]*$")
"""What a browser asks for and never says to have: a stream, an answer that nobody reads, a shared worker's script."""
Visit = Callable[..., Any]

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    api.expect.set_options(timeout=WAIT)
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def expect(locator: Any) -> Any:
    """Say what comes to hold of a locator: it is waited for."""
    from playwright.sync_api import expect as expected

    return expected(locator)


def wait(page: Any, holds: Callable[[], bool]) -> None:
    """Wait until something holds; a policy may let no text be evaluated in the page again and again."""
    late = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < late
        page.wait_for_timeout(100)


def boxes(page: Any, *locators: Any) -> list[dict[str, float]]:
    """Give where elements lie, all of one moment, once they have stopped moving: what comes late moves what is there.

    Of a locator of several elements, all of them are given.
    """
    rectangles = """all => all.map(one => one.getBoundingClientRect()).map(
        ({x, y, width, height}) => ({x, y, width, height}))"""
    read: list[list[dict[str, float]]] = []

    def still() -> bool:
        elements = [one for locator in locators for one in locator.element_handles()]
        read.append(page.evaluate(rectangles, elements))
        return bool(read[-1]) and len(read) > 2 and read[-1] == read[-2] == read[-3]

    wait(page, still)
    return read[-1]


def rests(page: Any) -> None:
    """Wait until all that was asked for is there and the page changes no more, so that what is read fits together."""
    read: list[str] = []

    def still() -> bool:
        if page.asked_for or page.locator("[aria-busy=true]").count():
            read.clear()
        read.append(page.content())
        return len(read) > 2 and read[-1] == read[-2] == read[-3]

    wait(page, still)


@contextlib.contextmanager
def visits(browser: Any, home: str, ready: str, *, quiet: bool = True, height: int = 800) -> Iterator[Visit]:
    """Give what opens pages, each in a context of its own.

    Args:
        browser: the fixture.
        home: address of the page; one that opens asks for nothing of another site.
        ready: selector of what is waited for.
        quiet: whether nothing may be said on the console; errors that nobody caught never are.
        height: of the window.
    """
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []
    # A page from a disk asks for nothing but itself, one of a server for what that has.
    sites = [home if home.startswith("file:") else home.rpartition("/")[0]]

    def opened(
        link: str = "",
        width: int = 1280,
        height: int = height,
        *,
        url: str = "",
        quiet: bool = quiet,
        prepare: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        if quiet:
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.asked_for = set()
        page.on("request", lambda one: None if ENDLESS.search(one.url) else page.asked_for.add(one))
        for ended in ("requestfinished", "requestfailed"):
            page.on(ended, lambda one: page.asked_for.discard(one))
        if url:
            sites.append(url.rpartition("/")[0])
        if prepare:
            prepare(page)
        page.goto(f"{url or home}#{link.removeprefix('#')}")
        page.wait_for_selector(ready)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not said, said
    assert [url for url in asked if not url.startswith(("data:", "blob:", *sites))] == []
