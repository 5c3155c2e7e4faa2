"""A folder of runs of every kind, and a server of it that listens on a port of this machine."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.study.picture import encode_png
from levada.web.access import Access
from levada.web.app import create_app
from levada.web.computation import Computation
from levada.web.folder import identity
from levada.web.pages import Pages
from levada.web.reader import Reader
from levada.web.server import Server, configured, listening

__all__ = ["Client", "np", "served"]

collect_ignore = ["fuzz.py"]  # a program, for which atheris must be there

WAIT = 500.0
"""Seconds that an answer may take: the machine may be busy, and a process that computes gives way to all others."""
HOSTILE = "</script><script>alert('é')</script>"
SITES = [{"name": f"layers.{i}", "order": i, "kind": "Linear", "shape": [4, 8], "parameters": []} for i in range(5)]
SIGNALS = ("signal_rms", "gradient_rms", "gradient_nonfinite")
STEPS = range(0, 400, 5)


def gradient(step: int, site: int) -> float:
    """A number for each place, of which its code gives back each."""
    if (step, site) == (100, 1):
        return 0.0
    if (step, site) == (200, 2):
        return math.inf
    if (step, site) == (300, 3):
        return math.nan
    return 2.0 ** (-site - step // 100)


def write_watched(folder: Path, name: str = "mine", ends: bool = True) -> Path:
    """Write a watched run whose every number is known: 80 samples of 5 sites, 400 losses, a finding."""
    with RunWriter.create(folder, kind="watch", name=name, config={"depth": 5, "lr": float("inf")}) as writer:
        writer.append(
            "loss", steps=list(range(400)), values=[math.nan if i == 7 else 4.0 - i / 100 for i in range(400)]
        )
        found = {"rule": "vanishing_gradient", "severity": "warn", "status": "fired", "claim": f"{HOSTILE} loses it."}
        found |= {"where": {"first": "layers.0", "last": "layers.3"}, "evidence": {"decay": 0.5, "told_at": 20}}
        writer.append("finding", step=20, case="a", finding=found)
        writer.append("judged", rules=["vanishing_gradient"], unjudged={}, waiting=[], few=[], first=0)
        writer.append("overhead", share=0.0125)
        if ends:
            writer.append("end", steps=400)
    with SignalWriter(folder, sites=SITES, signals=SIGNALS) as writer:
        for step in STEPS:
            values = [
                [1.0] * 5,
                [gradient(step, i) for i in range(5)],
                [float((step, i) == (300, 3)) for i in range(5)],
            ]
            writer.append(
                step, 1.7e9 + step, encode([v for row in values for v in row]), {"loss": 4.0, "accuracy": 0.5}
            )
            writer.flush()
    return folder


def write_inside(folder: Path) -> Path:
    """Write to a watched run what lies inside of its layers: gates of a recurrence, matrices of two streams."""
    gates = ("gate_mean", "gate_low", "gate_high", "gate_horizon")
    with SignalWriter(folder, sites=[{"name": "rnn", "gate": "forget gate"}], signals=gates, part="gates") as writer:
        for step in STEPS:
            writer.append(step, 1.7e9, encode([0.5, 0.25, 0.75, 10.0]))
    sites = [{"name": f"{site['name']}.connection", "shape": [2, 2], "chain": 0} for site in SITES]
    entries = [f"mix_{i}_{j}" for i in range(2) for j in range(2)]
    with SignalWriter(folder, sites=sites, signals=entries, part="mixing") as writer:
        for step in STEPS:
            writer.append(step, 1.7e9, encode([0.75] * 5 + [0.25] * 10 + [math.nan] * 5))
    return folder


def write_check(folder: Path) -> Path:
    """Write a check of a model with streams and a recurrence."""
    blocks = [
        {"site": f"layers.{i}", "order": i, "gradient_rms": 0.5**i, "composite_forward_gain": 1.0 + i} for i in range(3)
    ]
    curves = {"steps_back": [0, 1, 2], "memory": [1.0, 0.1, 0.01], "steps": [0, 1], "gradient": [0.1, 1.0]}
    finding = {"rule": "short_memory", "severity": "warn", "status": "fired", "claim": "It forgets."}
    finding |= {"where": {"first": "rnn", "last": "rnn"}, "evidence": {"curves": curves}, "remedies": []}
    chain = {"layers": ["layers.0", "layers.1"], "composite_forward_gain": 2.0, "composite_backward_gain": "inf"}
    mixing = {
        "matrices": {"layers.0": [[1.0, 0.0], [0.5, 0.5]], "layers.1": [[1.0, 0.0], [0.0, 1.0]]},
        "chains": [chain],
    }
    memory = {"value": 8.0, "low": 7.0, "high": 9.0, "steps": 20}
    report = {"schema": 1, "verdict": "warn", "model": HOSTILE, "blocks": blocks, "findings": [finding], "notes": []}
    report["summary"] = {"depth": 3, "mixing": mixing, "memory_horizon": memory}
    report["blocks"] = [{**block, "gradient_predicted": 0.25 ** block["order"]} for block in blocks]
    with RunWriter.create(folder, kind="check", name=HOSTILE) as writer:
        writer.append("report", title="", report=report)
    return folder


def write_training(folder: Path) -> Path:
    """Write a training of 3 steps, continued after the first, with its watched run inside."""
    with RunWriter.create(folder, kind="train", name="training", config={"run": {"steps": 3}}) as writer:
        writer.append("launched", name="a")
        writer.append("losses", first=0, loss=[3.0, 2.0], gradient_norm=[1.0, 1.0], lr=[0.1, 0.1])
        writer.append("resumed", step=1)
        writer.append("losses", first=1, loss=[2.5, math.inf], gradient_norm=[1.0, 1.0], lr=[0.1, 0.1])
        writer.append("evaluation", step=3, loss=2.75)
        writer.append("end", state="ended")
    write_watched(folder / "watch" / "1")
    return folder


PNG = encode_png(torch.arange(0, 250, 10, dtype=torch.uint8).reshape(5, 5))


def write_pictures(folder: Path) -> Path:
    """Write a study with a figure of lines between two pictures, of which the second has an image that is none."""
    image = {"label": "fused 10^-3", "alternative": f"Edges, {HOSTILE}", "png": base64.b64encode(PNG).decode()}
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode()
    series = [{"label": "a", "style": "measured", "x": [0, 1], "y": [1, 2]}]
    with RunWriter.create(folder, kind="study", name="R17") as writer:
        writer.append("study", name="R17", title="What is seen?")
        writer.append("figure", kind="picture", id="a", title="Edges", caption="Black: an edge.", images=[image])
        writer.append("figure", id="b", title="Lines", x={"label": "x"}, y={"label": "y"}, series=series)
        images = [{**image, "label": "not this", "png": svg}, {**image, "label": "this"}]
        writer.append("figure", kind="picture", id="c", title="Others", caption="", images=images)
        writer.append("claim", name="c", statement="It is seen.", status="held")
    return folder


def write_study(folder: Path) -> Path:
    """Write a study with one claim."""
    with RunWriter.create(folder, kind="study", name="R1") as writer:
        writer.append("study", name="R1", title="How fast?", question="Does it decay?", sources=[], notes="")
        claim = {"name": "decays", "statement": "It decays.", "criterion": "by 3 %", "status": "held"}
        claim["numbers"] = {
            "tanh: measured": 0.19,
            "tanh: predicted": 0.2,
            "slope": {"value": 0.5, "low": 0.4, "high": 0.6},
        }
        writer.append("claim", **claim, seeds=[0], reason="It fell by 2 %.")
    return folder


@dataclass
class Client:
    """Asks a server, as a program or as a page."""

    port: int
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Send a request as it is written here, with no more than a Host of its own; give status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            given = {"host": f"127.0.0.1:{self.port}", **self.headers, **headers}
            for name, value in given.items():
                connection.putheader(name.replace("_", "-"), value)
            if body:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask("GET", path, **headers)

    def json(self, path: str, status: int = 200) -> Any:
        """Give an answer as JSON."""
        found, headers, body = self.get(path)
        assert (found, headers["content-type"]) == (status, "application/json"), body
        return json.loads(body)

    def post(self, path: str, value: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Ask as a page of the server does, with the token."""
        own = {"origin": f"http://127.0.0.1:{self.port}", "authorization": f"Bearer {self.token}"}
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", path, body, **{"content_type": "application/json", **own, **headers})

    def runs(self) -> dict[str, Any]:
        """Give the list once all runs are read."""
        while (listed := self.json("/api/1/runs"))["waiting"]:
            time.sleep(0.1)
        found: dict[str, Any] = listed
        return found

    @contextlib.contextmanager
    def listening(self) -> Iterator[http.client.HTTPResponse]:
        """Give the stream of events."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.request("GET", "/api/1/events")
            with connection.getresponse() as stream:
                yield stream

    def run(self, name: str, what: str = "") -> str:
        """Give the address of a run."""
        return f"/api/1/runs/{identity(name)}{what}"


@contextlib.contextmanager
def served(
    root: Path,
    *,
    closed: bool = False,
    pages: Path | None = None,
    seconds: float = WAIT,
    every: float = 0.1,
    **how: Any,
) -> Iterator[Client]:
    """Serve a folder until the block ends."""
    access = Access(closed=closed)
    bound = listening("127.0.0.1", 0)
    ready = threading.Event()
    server: Any = None

    async def run() -> None:
        nonlocal server
        nothing = Pages(root / "no pages")
        reader = how.get("reader") or Reader(root, seconds)
        app = create_app(
            root,
            access,
            pages=Pages(pages) if pages else nothing,
            reader=reader,
            computation=how.get("computation") or Computation(WAIT),
            every=every,
        )
        server = Server(configured(app), app.end)
        ready.set()
        await server.serve(sockets=[bound])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait()
    try:
        yield Client(bound.getsockname()[1], access.token)
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    write_inside(write_watched(folder / "watched"))
    write_check(folder / "checks" / "one")
    write_training(folder / "training")
    write_study(folder / "study")
    return folder


@pytest.fixture(scope="session")
def client(root: Path) -> Iterator[Client]:
    """A server of that folder, as it starts by default."""
    with served(root) as client:
        client.runs()
        yield client
