"""Pictures of every page as a browser shows it: for who mends the pages to look at, and a few for the documentation.

    python -m docs.screenshots [--out FOLDER] [--page NAME ...] [--width PIXELS ...] [--scheme light|dark ...] [--docs]

Writes `PAGE-WIDTH-SCHEME.png` for each page, width and scheme; with --docs also the chosen ones as WebP into
`docs/images`. The runs on them are trained, checked and studied first (`docs.screenshot_runs`), and kept in the folder:
a second call takes those. Needs the built pages (`make web`), Playwright, a `chromium` and Pillow.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.screenshot_runs import NAMES, make_runs

from levada.report import write_html
from levada.web.folder import identity

__all__ = ["IMAGES", "PAGES", "SCHEMES", "WIDTHS", "Shot", "browsing", "main", "take"]

ROOT = Path(__file__).parents[1]
EXPLORER = ROOT / "src/levada/web/static/single/explore.html"
IMAGES = ROOT / "docs/images"
WIDTHS = {360: 740, 1280: 1000, 3840: 2160}
SCHEMES = ("light", "dark")
MOST = 120_000  # bytes of a picture in the documentation
_HIGHEST = 12_000  # pixels of an artefact: below it, a page repeats itself
_PATIENCE = 180_000  # milliseconds


@dataclass(frozen=True)
class Shot:
    """One page to be taken.

    Attributes:
        name: of its files.
        link: what stands behind the page's address.
        ready: what to wait for; it may press a button first.
        of: which page: "explorer", "live", "report", or "check", a report of one check.
        image: its file in `docs/images`, if it has one there.
        height: of that picture.
        at: what that picture begins with: a selector; "" for the top of the page.
    """

    name: str
    link: str
    ready: Callable[[Any], None]
    of: str = "explorer"
    image: str = ""
    height: int = 860
    at: str = ""


def _read(page: Any) -> None:
    page.locator(".reading, [role=alert]").first.wait_for()


def _computed(page: Any) -> None:
    """Wait for the five connections of the first tab's picture."""
    page.locator(".told tbody tr").nth(4).wait_for()


def _trained(page: Any) -> None:
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="Train again").wait_for()
    page.locator("canvas").last.wait_for()
    page.wait_for_function("!document.body.innerText.includes('computing …')")
    page.get_by_role("button", name="Stop taking away").wait_for(state="detached")


def _remembered(page: Any) -> None:
    page.locator(".after tbody tr").nth(2).wait_for()
    page.locator(".figure[aria-busy=false]").first.wait_for()


def _answered(page: Any) -> None:
    """Predict the first question of a chapter, and let it be computed."""
    question = page.locator("[data-question]").first
    question.wait_for()
    if question.locator("input[type=radio]").count():
        question.locator("input[type=radio]").first.check()
    else:
        question.locator("input[type=range]").press("ArrowRight")
    question.get_by_role("button", name="Compute it").click()
    question.locator(".verdict").wait_for()


def _listed(page: Any) -> None:
    page.locator("tbody th a").nth(len(NAMES) - 1).wait_for()


def _mapped(page: Any) -> None:
    """Wait until a run's maps, lines and losses are drawn. The network is never idle: the stream of events is open."""
    page.locator(".read[aria-busy=false]").nth(1).wait_for()
    page.locator(".read[aria-busy=true]").first.wait_for(state="detached")
    page.locator(".profiles figure").nth(1).wait_for()
    page.locator(".plot canvas").first.wait_for()


def _reported(page: Any) -> None:
    page.locator("figure.moving").first.wait_for()


def _pages() -> dict[str, Shot]:
    run, other = identity("plain"), identity("residual")
    many = "connections=plain,residual,highway,hyper,manifold"
    shots = [
        Shot("depth", f"depth=100&{many}", _computed, image="explore.webp"),
        Shot("train", "tab=train", _trained, image="explore-train.webp"),
        Shot("time", "tab=time", _remembered, image="explore-time.webp"),
        Shot("mixing", "tab=mixing&connections=hyper,manifold", _read),
        *(
            Shot(f"lesson-{n}", f"tab=lessons&chapter={n}", _answered, image="explore-lesson.webp" if n == 5 else "")
            for n in range(1, 8)
        ),
        Shot("live-list", "#/", _listed, "live", "live-runs.webp", height=420),
        Shot("live-run", f"#/run/{run}?step=150&layer=20", _mapped, "live", "live-run.webp", height=1500),
        Shot("live-compare", f"#/run/{run}?with={other}&step=150&layer=20", _mapped, "live", "live-compare.webp"),
        Shot("report", "", _reported, "report", "report.webp", height=1100),
        Shot("report-check", "", _reported, "check", "report-check.webp", height=1260),
    ]
    return {shot.name: shot for shot in shots}


PAGES = _pages()


@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """Give a browser of this machine."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("A browser takes the pictures, and there is no chromium on this machine.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextlib.contextmanager
def _serving(runs: Path) -> Iterator[str]:
    """Serve the runs, and give the address of their page."""
    words = [sys.executable, "-P", "-m", "levada", "serve", str(runs), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", said)
        if found is None:
            raise SystemExit(f"levada serve said no address, but {said!r}.")
        yield found[0]
    finally:
        process.kill()
        process.communicate()


def take(browser: Any, shot: Shot, home: str, width: int, scheme: str, file: Path, image: Path | None = None) -> None:
    """Take one page as a file, and its picture for the documentation where one is asked for.

    Args:
        browser: as `browsing` gives it.
        shot: of `PAGES`.
        home: the address of its page.
        width: of the window.
        scheme: "light" or "dark".
        file: where the picture of the whole page goes.
        image: where that of its chosen part goes.
    """
    context = browser.new_context(
        viewport={"width": width, "height": WIDTHS.get(width, 1000)}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(_PATIENCE)
    try:
        link = f"{home}{shot.link}" if shot.of != "explorer" else f"{home}#{shot.link}"
        page.goto(link)
        shot.ready(page)
        page.wait_for_timeout(600)  # for what is drawn after it was measured
        high = min(page.evaluate("document.documentElement.scrollHeight"), _HIGHEST)
        page.set_viewport_size({"width": width, "height": max(high, WIDTHS.get(width, 1000))})
        page.wait_for_timeout(600)
        page.screenshot(path=file)
        if image is not None:
            top = page.locator(shot.at).first.bounding_box()["y"] if shot.at else 0
            part = {"x": 0, "y": top, "width": width, "height": shot.height}
            _store(page.screenshot(clip=part), image)
    finally:
        context.close()


def _store(png: bytes, image: Path) -> None:
    """Write a picture as small as the documentation wants it."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        for quality in (90, 80, 65):
            opened.save(image, "webp", quality=quality, method=6)
            if image.stat().st_size <= MOST:
                return
    raise SystemExit(f"{image.name} has {image.stat().st_size:,} bytes, and may have {MOST:,}: take less of the page.")


def main(words: Sequence[str] | None = None) -> None:
    """Take what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/screenshots", help="the folder (%(default)s)")
    parser.add_argument("--page", nargs="+", choices=sorted(PAGES), default=list(PAGES))
    parser.add_argument("--width", nargs="+", type=int, default=list(WIDTHS), metavar="PIXELS")
    parser.add_argument("--scheme", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--docs", action="store_true", help="write the pictures of the documentation, too")
    options = parser.parse_args(words)
    if not EXPLORER.exists():
        raise SystemExit("The pages are not built: make web.")
    shots = [PAGES[name] for name in options.page]
    options.out.mkdir(parents=True, exist_ok=True)
    runs = options.out / "runs"
    homes = {"explorer": EXPLORER.as_uri()}
    with contextlib.ExitStack() as stack:
        if any(shot.of != "explorer" for shot in shots):
            homes["report"] = write_html(make_runs(runs), options.out / "report.html").as_uri()
            homes["check"] = write_html([runs / "check"], options.out / "check.html").as_uri()
        if any(shot.of == "live" for shot in shots):
            homes["live"] = stack.enter_context(_serving(runs))
        browser = stack.enter_context(browsing())
        for shot in shots:
            for width in options.width:
                for scheme in options.scheme:
                    chosen = options.docs and shot.image and (width, scheme) == (1280, "light")
                    file = options.out / f"{shot.name}-{width}-{scheme}.png"
                    take(browser, shot, homes[shot.of], width, scheme, file, IMAGES / shot.image if chosen else None)
                    print(file)  # noqa: T201 (a script)


if __name__ == "__main__":
    main()
