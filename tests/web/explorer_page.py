"""The explorer's one file in a browser: opened by a link, without requests, and with nothing said on the console."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import levada

CHROMIUM = shutil.which("chromium")
PAGE = Path(levada.__file__).parent / "web/static/single/explore.html"
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
Visit = Callable[..., Any]

needs_page = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.skipif(not PAGE.exists(), reason="the pages are not built: make web"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Open the page by a link; nothing may be asked of a network, and nothing may go wrong."""
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []

    def opened(link: str, width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{PAGE.as_uri()}#{link}")
        page.get_by_role("tabpanel").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert {url.split("#")[0] for url in asked if not url.startswith(("data:", "blob:"))} <= {PAGE.as_uri()}


def settled(page: Any, key: str) -> None:
    """Wait until the address says so."""
    page.wait_for_function("key => location.hash.includes(key)", arg=key)


def sentences(page: Any) -> list[str]:
    """What the page reads out of its figures."""
    return list(page.locator(".reading").all_inner_texts())


def numbers(text: str) -> list[float]:
    """Every number of a sentence, also such as 2.0×10⁻⁵."""
    plain = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")).replace("×10", "e")
    return [float(found) for found in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", plain)]


def violations(page: Any) -> str:
    """What axe-core finds wrong, as text; nothing if all is well."""
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run().then(found => found.violations)")
    return "\n".join(json.dumps([one["id"], [node["html"][:160] for node in one["nodes"]]]) for one in found)
