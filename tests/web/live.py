"""What the live page's tests are made on: a run of which every number is known, and a server that can be killed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.web.folder import identity
from levada.web.pages import STATIC

from .visiting import Visit, needs_browser, visits

__all__ = ["Served", "needs_page", "server", "visit", "write_deep"]

needs_page = [
    needs_browser,
    pytest.mark.skipif(not (STATIC / "index.html").exists(), reason="the pages are not built: make web"),
]


def write_deep(folder: Path, rate: float, names: Sequence[str] = (), steps: range = range(0, 600, 10)) -> None:
    """Write a run whose gradient at layer i is `rate` to the power of i, at every step."""
    sites = [{"name": name, "order": i} for i, name in enumerate(names or [f"layers.{i}" for i in range(30)])]
    with RunWriter.create(folder, kind="watch", name=folder.name) as writer:
        writer.append("loss", steps=list(steps), values=[4.0 / (1 + step) for step in steps])
        with SignalWriter(folder, sites=sites, signals=["signal_rms", "gradient_rms"]) as signals:
            for step in steps:
                signals.append(
                    step, 1.7e9 + step, encode([1.0] * len(sites) + [rate**i for i in range(len(sites))]), {}
                )
                signals.flush()
        writer.append("end", steps=steps[-1] + 1)


class Served:
    """A server of a folder, or of the explorer, which can be killed and started again at the same port."""

    def __init__(self, root: Path | None, *words: str) -> None:
        self.root, self.words, self.port = root, words, 0
        self.start()

    def start(self) -> None:
        what = ["explore", "--no-open"] if self.root is None else ["serve", str(self.root)]
        words = [sys.executable, "-P", "-m", "levada", *what, "--port", str(self.port), *self.words]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/[\w.]*#(token=(\S+))", self.process.stdout.readline())
        assert found is not None
        self.port, self.token = int(found[1]), f"#{found[2]}"
        asked = Request(f"http://127.0.0.1:{self.port}/api/1/runs", headers={"authorization": f"Bearer {found[3]}"})
        urlopen(asked, timeout=300).close()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def run(self, name: str, asked: str = "") -> str:
        return f"#/run/{identity(name)}{asked}"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    """Serve what a module's own fixture `folder` has written."""
    served = Served(folder)
    yield served
    served.kill()


@pytest.fixture
def visit(browser: Any, server: Served) -> Iterator[Visit]:
    """Open the page; a server that answers leaves nothing to say in the console."""
    with visits(browser, f"http://127.0.0.1:{server.port}/", "h1", height=900) as opened:
        yield opened
