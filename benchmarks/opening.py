"""How long the pages take to open in Chromium: until a run of the list, the map of a run, or the explorer can be used.

python -m benchmarks.opening [FOLDER] [--quick]

A server of FOLDER, or of 20 small runs, is started and has read them. Then the page is opened seven times, each time in
a new context, which has nothing in its cache: from the start of the navigation, as the browser says it, until the link
of the first run stands there and a frame with it was painted; of the largest run until its heat map has cells; of the
explorer until its first figures and their table stand there. In turns with them a page is opened that holds one line
of text from the same server: what a browser takes for any page. Milliseconds, quartiles and median, are kept in
results/opening.jsonl with the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.measure import commit, machine, versions
from benchmarks.serve import ROUNDS, write

USABLE = """
selector => {
  new MutationObserver((_, observer) => {
    if (!document.querySelector(selector)) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.usable = performance.now(); }));
  }).observe(document, { childList: true, subtree: true, attributes: true });
}
"""
EMPTY, LIST, MAP, EXPLORER = "pre", "tbody th a", ".read[aria-busy=false]", ".told tbody tr"


def opened(browser: Any, address: str, selector: str) -> float:
    """Open the page once; give the milliseconds until what is selected can be used."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.add_init_script(f"({USABLE})({json.dumps(selector)})")
        page.goto(address)
        page.wait_for_selector(selector)
        while (taken := page.evaluate("window.usable ?? null")) is None:
            page.wait_for_timeout(50)
        return float(taken)
    finally:
        context.close()


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    words = [sys.executable, "-P", "-m", "levada", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        found = re.search(r"(http://127\.0\.0\.1:\d+/)(#token=\S+)", server.stdout.readline())
        assert found is not None
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            with urlopen(f"{found[1]}api/1/runs", timeout=120) as answer:
                listed = json.load(answer)["runs"]
            largest = max(listed, key=lambda run: run["depth"] * run["steps"])
            places = {
                "empty": (f"{found[1]}nothing", EMPTY),  # no such page: a line of plain text
                "list": (found[0], LIST),
                "run": (f"{found[1]}#/run/{largest['id']}", MAP),
                "explorer": (f"{found[1]}explore.html", EXPLORER),
            }
            times: dict[str, list[float]] = {name: [] for name in places}
            for number in range(rounds + 1):
                for name, (address, selector) in places.items():
                    taken = opened(browser, address, selector)
                    if number:  # the first starts what the browser needs
                        times[name].append(taken)
        finally:
            browser.close()
            server.kill()
    told = {name: [round(at) for at in statistics.quantiles(one, n=4)] for name, one in times.items()}
    return {"runs": len(listed), "depth": largest["depth"], "steps": largest["steps"], "milliseconds": told}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opening")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true", help="twice, and nothing is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        if given.folder is None:
            for number in range(20):
                write(Path(home) / f"run-{number}", 50, 200, 2)
        row = measure(given.folder or Path(home), 2 if given.quick else ROUNDS)
    print(json.dumps(row, indent=1))
    if not given.quick:
        about = {"machine": machine(), "versions": versions(), "commit": commit()}
        row = {"benchmark": "opening", **row, **about, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        with (Path(__file__).parent / "results" / "opening.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
