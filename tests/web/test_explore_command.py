"""`levada explore`: the page as a file, and from a server whose rules judge what the page describes."""

from __future__ import annotations

import functools
import importlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from levada.cli import main

from .visiting import Visit, browser, expect, needs_browser, visits, wait

MODULE = importlib.import_module("levada.commands.explore")  # `levada.commands` has the function of that name
__all__ = ["browser"]
PAGE = MODULE._PAGE
built = pytest.mark.skipif(not PAGE.exists(), reason="the pages are not built: make web")


@built
def test_the_page_is_written_as_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "explorer.html"
    assert main(["explore", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    text = out.read_text()
    assert text == PAGE.read_text()
    assert re.findall(r"<(?:script|link)[^>]*(?:src|href)=\"([^\"]*)\"", text) == ["data:,"]


@built
@pytest.mark.parametrize(
    ("out", "told"),
    [(".", "must name a file, got '.', which is a folder"), ("no/such/folder/x.html", "cannot be written")],
)
def test_what_cannot_be_written_is_said(
    out: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explore", "--out", out]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--out", "x.html"], []])
def test_without_pages_one_sentence_says_how_to_build_them(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_PAGE", tmp_path / "none.html")
    assert main(["explore", *words]) == 2
    told = "levada explore: This installation of levada has no pages. In a checkout, `make web` builds them.\n"
    assert capsys.readouterr().err == told


@built
def test_without_the_extra_a_sentence_says_what_needs_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["explore"]) == 2
    told = capsys.readouterr().err
    assert "pip install 'levada[serve]'" in told
    assert "--out explore.html" in told


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    for module in ("fastapi", "uvicorn", "numpy"):
        pytest.importorskip(module, reason="levada[serve] is not installed")
    words = [sys.executable, "-P", "-m", "levada", "explore", "--port", "0", "--no-open"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.fullmatch(r"Serving explore\.html at (http://127\.0\.0\.1:\d+/explore\.html#token=\S+)\n", first)
        assert found is not None, first
        yield found[1], process
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=300)[0].endswith("levada explore: ended.\n")


@pytest.fixture
def visit(served: tuple[str, Any], browser: Any) -> Iterator[Visit]:
    """Open the page that the server printed; the worker runs under the server's policy."""
    home, _, token = served[0].partition("#")
    with visits(browser, home, ".reading") as opened:
        yield functools.partial(opened, token)


@built
@needs_browser
@pytest.mark.parametrize(
    ("link", "name", "told"),
    [
        ("depth=40&connections=plain,residual&rows=16&width=16", "plain", "plain: The signal dies out"),
        ("depth=6&connections=dense&growth=4&width=16&rows=16&preActivation=1&bias=0", "dense", "dense: "),
        ("depth=6&connections=manifold&width=16&rows=16&norm=layer&activation=relu&expert=1", "manifold", "mHC: "),
    ],
    ids=["plain", "dense", "manifold"],
)
def test_the_server_judges_what_the_page_describes(visit: Visit, link: str, name: str, told: str) -> None:
    page = visit()
    wait(page, lambda: page.evaluate("location.hash") in ("", "#/"))
    page.evaluate("link => { location.hash = link }", link)
    depth = link.split("&")[0].removeprefix("depth=")
    page.wait_for_function("depth => document.querySelector('input[type=number]').value == depth", arg=depth)
    page.get_by_role("button", name="Open in check").click()
    page.locator(".verdict").wait_for(timeout=100_000)
    expect(page.locator(".verdict")).to_contain_text(told)


@built
@needs_browser
def test_a_window_without_the_token_says_that_a_server_is_there(served: tuple[str, Any], browser: Any) -> None:
    home = served[0].partition("#")[0]
    with visits(browser, home, ".reading") as visit:
        page = visit("depth=4")
        page.get_by_role("button", name="Open in check").click()
        expect(page.get_by_role("alert")).to_contain_text("this window has no token of it")
        expect(page.get_by_role("alert")).to_contain_text("Open the address that the server printed in this window")
        expect(page.locator(".command")).to_contain_text("levada check")
