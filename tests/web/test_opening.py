"""What opening a page takes: bytes, and how long its own thread computes until it can be used.

A clock on a machine that others use measures the others. What is held here is the processor time of the page's main
thread, in which nothing else can be answered: measured with 25 processes waiting for two cores, 0.08 to 0.09 s for the
list and 0.11 to 0.12 s for the explorer. `benchmarks.opening` has the seconds on a core that nothing else has.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from levada.web.pages import STATIC

from .live import Served, write_deep
from .visiting import WAIT, browser, needs_browser

__all__ = ["browser"]
pytestmark = pytest.mark.skipif(not (STATIC / "index.html").exists(), reason="the pages are not built: make web")
BYTES = {"index.html": 50_000, "explore.html": 130_000}
READY = {"index.html": "tbody a", "explore.html": ".told tbody tr"}
SECONDS = 0.3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("opening")
    for i in range(20):
        write_deep(root / f"run{i}", 0.5, steps=range(0, 50, 10))
    served = Served(root)
    yield served
    served.kill()


@pytest.mark.parametrize("name", BYTES)
def test_the_first_view_is_small(name: str) -> None:
    page = (STATIC / name).read_text(encoding="utf-8")
    files = re.findall(r"(?:src|href)=\"\./(assets/[^\"]+)\"", page)
    assert len(files) >= 2
    sizes = [len(gzip.compress(text)) for text in (page.encode(), *(Path(STATIC / one).read_bytes() for one in files))]
    assert sum(sizes) < BYTES[name]


@needs_browser
@pytest.mark.parametrize("name", READY)
def test_a_page_can_be_used_soon(browser: Any, server: Served, name: str) -> None:
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(f"http://127.0.0.1:{server.port}/{name}{server.token}")
    page.locator(READY[name]).first.wait_for(timeout=WAIT)
    told = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    page.close()
    assert 0 < told["TaskDuration"] < SECONDS
