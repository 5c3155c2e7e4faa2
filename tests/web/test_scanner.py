"""What looks for runs: no reader, listener or folder that is slow or broken holds it up, or makes it large."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from levada.runs import RunWriter
from levada.web import scanner as looking
from levada.web.folder import RefusedError, found_in, identity, stamp
from levada.web.scanner import Scanner
from levada.web.shapes import Row

from .conftest import WAIT, served
from .test_limits import connected, status

PAGES = 50


def row(steps: int = 0) -> Row:
    return looking._unreadable("a" * 20, "run", 0.0, "").model_copy(update={"steps": steps})


class Told:
    """A reader that gives of each run how often it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked, self.refuses, self.seconds = 0, 0, seconds

    async def start(self) -> None:
        """Have nothing to start."""

    async def ask(self, name: str, **_: Any) -> bytes:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        if self.refuses:
            raise RefusedError(self.refuses, "It is refused.")
        return row(self.asked).model_dump_json().encode()


def scanning(root: Path, reader: Any, every: float = 2.0) -> Scanner:
    scanner = Scanner(root, reader, every)
    scanner._looked.set()
    return scanner


@pytest.fixture
def grows(tmp_path: Path) -> Any:
    """Write a run; give what makes it longer."""
    writer = RunWriter.create(tmp_path / "run", kind="watch", name="run")
    yield lambda: writer.append("loss", steps=[0], values=[1.0])
    writer.close()


def test_a_page_that_falls_behind_is_let_go_and_the_others_are_told(tmp_path: Path) -> None:
    async def ask() -> None:
        scanner = scanning(tmp_path, Told())
        with scanner.listening() as slow, scanner.listening() as quick:
            await anext(slow)
            await anext(quick)
            for step in range(3 * looking._UNTOLD):
                scanner._tell("grew", row(step))
                assert f'"steps":{step},'.encode() in await anext(quick)
            async with asyncio.timeout(WAIT):
                assert len([told async for told in slow]) == looking._UNTOLD - 1
            assert len(scanner._listeners) == 1

    asyncio.run(ask())


def test_a_reader_that_has_no_time_is_asked_again_and_the_run_is_not_called_unreadable(
    tmp_path: Path, grows: Any
) -> None:
    async def ask() -> None:
        reader = Told()
        scanner = scanning(tmp_path, reader)
        reader.refuses = 503
        await scanner.look()
        listed = await scanner.listed()
        assert (listed.runs, listed.waiting) == ([], 1)
        reader.refuses = 409
        await scanner.look()
        assert [one.problem for one in (await scanner.listed()).runs] == ["It is refused."]

    asyncio.run(ask())


class Clock:
    """The scanner's clock, which stands but where reading, looking or waiting moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def sleeping(sleep: Callable[[float], Awaitable[None]]) -> SimpleNamespace:
    """Give asyncio with another sleep, for what is waited for, too, in this thread alone: others serve other tests."""
    mine = threading.get_ident()

    async def slept(seconds: float) -> None:
        await (sleep if threading.get_ident() == mine else asyncio.sleep)(seconds)

    async def waited(event: Any, seconds: float) -> Any:
        if threading.get_ident() != mine:
            return await asyncio.wait_for(event, seconds)
        event.close()
        await sleep(seconds)
        raise TimeoutError

    return SimpleNamespace(**{**vars(asyncio), "sleep": slept, "wait_for": waited})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(looking, "time", made)
    return made


def test_a_run_that_is_slow_to_read_is_not_read_at_every_change(tmp_path: Path, grows: Any, clock: Clock) -> None:
    class Slow(Told):
        async def ask(self, name: str, **how: Any) -> bytes:
            clock.now += 0.1
            return await super().ask(name, **how)

    async def ask() -> None:
        reader = Slow()
        scanner = scanning(tmp_path, reader)
        asked = []
        for pause in (0.0, 0.5, 0.4, 0.2, 0.5):
            clock.now += pause
            grows()
            await scanner.look()
            asked.append(reader.asked)
        assert asked == [1, 1, 1, 2, 2]  # it took 0.1 s, so for 1 s there is not another

    asyncio.run(ask())


def test_what_is_taken_away_is_told_while_another_run_is_read(tmp_path: Path) -> None:
    class Slow(Told):
        """A reader that is still reading the last run when the test ends."""

        async def ask(self, name: str, **of: Any) -> bytes:
            if of["run"] == "slow":
                self.asked += 1
                await asyncio.Event().wait()
            return row().model_dump_json().encode()

    async def ask() -> list[bytes]:
        reader = Slow()
        scanner = scanning(tmp_path, reader, every=0.0)
        with scanner.listening() as heard:
            await anext(heard)
            task = asyncio.create_task(scanner.run())
            told = [await anext(heard)]
            RunWriter.create(tmp_path / "slow", kind="watch", name="slow").close()
            while reader.asked == 0:
                await asyncio.sleep(0.01)
            shutil.rmtree(tmp_path / "run")
            told.append(await anext(heard))
            shutil.rmtree(tmp_path / "slow")  # it was never read, and yet a page may show it
            told.append(await anext(heard))
            told.append(str((await scanner.listed()).runs).encode())
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        return told

    RunWriter.create(tmp_path / "run", kind="watch", name="run").close()
    appeared, gone, unread, left = asyncio.run(asyncio.wait_for(ask(), 120))
    assert [one[:12] for one in (appeared, gone, unread)] == [b"event: appea", b"event: gone\n", b"event: gone\n"]
    assert (b'"name":"slow"' in unread, left) == (True, b"[]")


def test_a_new_run_is_read_when_it_is_found_however_long_the_others_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_SHARE", 10**9)  # after a look that read something, none for 30 s and more
    monkeypatch.setattr(looking, "_LATEST", 10**6)

    async def ask() -> list[bytes]:
        scanner = scanning(tmp_path, Told(seconds=0.01), every=0.0)
        with scanner.listening() as heard:
            await anext(heard)
            found = asyncio.create_task(scanner._again(scanner._read_changed, scanner._looked))
            told = []
            for name in ("first", "second"):
                RunWriter.create(tmp_path / name, kind="watch", name=name).close()
                await scanner._find()
                told.append(await anext(heard))
            found.cancel()
        return told

    assert [one[:15] for one in asyncio.run(asyncio.wait_for(ask(), 120))] == [b"event: appeared"] * 2


def test_a_run_that_is_taken_away_while_it_is_read_is_not_told_of_again(
    tmp_path: Path, grows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> list[str]:
        scanner = scanning(tmp_path, Told())
        told: list[str] = []
        monkeypatch.setattr(scanner, "_tell", lambda what, _: told.append(what))

        class Leaving(Told):
            async def ask(self, name: str, **_: Any) -> bytes:
                shutil.rmtree(tmp_path / "run")
                await scanner._find()
                return row(7).model_dump_json().encode()

        await scanner.look()
        grows()
        next(iter(scanner._known.values())).next = 0.0
        monkeypatch.setattr(scanner, "_reader", Leaving())
        await scanner.look()
        return told

    assert asyncio.run(ask()) == ["appeared", "gone"]


@pytest.mark.parametrize(("latest", "apart"), [(30.0, 0.55), (0.1, 0.15)])
def test_a_folder_that_is_slow_to_look_through_takes_a_part_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, latest: float, apart: float
) -> None:
    looks: list[float] = []

    def slow(root: Path) -> tuple[list[str], int]:
        if root != tmp_path:
            return found_in(root)
        looks.append(clock.now)
        clock.now += 0.05
        return [], 0

    async def sleep(seconds: float) -> None:
        if len(looks) == 3:
            raise asyncio.CancelledError
        clock.now += seconds

    monkeypatch.setattr(looking, "_LATEST", latest)
    monkeypatch.setattr(looking, "found_in", slow)
    monkeypatch.setattr(looking, "asyncio", sleeping(sleep))
    scanner = scanning(tmp_path, Told(), every=0.0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scanner._again(scanner._find, scanner._found))
    assert [b - a for a, b in itertools.pairwise(looks)] == pytest.approx([apart] * 2)


def test_to_start_what_reads_is_no_time_of_looking_or_of_a_run(
    tmp_path: Path, grows: Any, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    class Slow(Told):
        """A reader that dies of every run, and whose start takes as long as it did on a busy machine."""

        there = False

        async def start(self) -> None:
            clock.now += 0.0 if self.there else 4.0
            self.there = True

        async def ask(self, name: str, **how: Any) -> bytes:
            await self.start()
            clock.now += 0.7
            self.there = False
            return await super().ask(name, **how)

    pauses: list[float] = []

    def slow(run: Path) -> Any:
        clock.now += 0.5 if run.parent == tmp_path else 0.0
        return stamp(run)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise asyncio.CancelledError
        clock.now += seconds

    async def ask(scanner: Scanner) -> None:
        assert await scanner._find() == 0
        await scanner._again(scanner._read_changed, scanner._looked)

    monkeypatch.setattr(looking, "stamp", slow)
    monkeypatch.setattr(looking, "asyncio", sleeping(sleep))
    reader = Slow()
    scanner = scanning(tmp_path, reader, every=2.0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(ask(scanner))
    assert (reader.asked, pauses) == (1, pytest.approx([5.0, 5.0]))
    (one,) = scanner._known.values()
    assert one.next == pytest.approx(1000.0 + 4.0 + 0.5 + 0.7 + 7.0)

    async def again() -> None:
        grows()
        reader.there, clock.now = False, 2000.0
        await scanner._read(identity("run"), one, None)

    asyncio.run(again())
    assert one.next == pytest.approx(2000.0 + 4.0 + 0.7 + 7.0)


def test_a_look_that_fails_is_not_the_last(
    tmp_path: Path, grows: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = [ValueError("a fault"), ValueError("a fault")]

    def failing(root: Path) -> Any:
        if left and root == tmp_path:  # and no server that another test has left
            raise left.pop()
        return found_in(root)

    async def ask() -> None:
        scanner = scanning(tmp_path, Told(), every=0.0)
        task = asyncio.create_task(scanner.run())
        async with asyncio.timeout(WAIT):
            while not (await scanner.listed()).runs:
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    monkeypatch.setattr(looking, "found_in", failing)
    asyncio.run(ask())
    assert caplog.text.count("a fault") >= 2


def heard(page: socket.socket) -> list[tuple[str, dict[str, Any]]]:
    """Read what a page is told of until the run is gone."""
    text = b""
    while b"event: gone" not in text or not text.endswith(b"\n\n\r\n"):
        more = page.recv(2**16)
        assert more
        text += more
    found = re.findall(r"event: (\w+)\ndata: (.*)\n", text.decode())
    return [(event, json.loads(told)) for event, told in found if event != "heartbeat"]


def test_fifty_pages_see_a_run_grow_and_its_folder_taken_away(tmp_path: Path) -> None:
    with served(tmp_path, every=0.02) as client, connected(client, PAGES) as pages:
        for page in pages:
            page.sendall(f"GET /api/1/events HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode())
        assert [status(page) for page in pages] == [200] * PAGES
        with RunWriter.create(tmp_path / "run", kind="watch", name="run") as writer:
            address = client.run("run")
            while client.get(address)[0] != 200:
                time.sleep(0.02)
            for step in range(300):
                writer.append("loss", steps=[step], values=[1.0])
            while client.json("/api/1/runs")["runs"][0]["steps"] < 300:
                time.sleep(0.05)
        shutil.rmtree(tmp_path / "run")
        told = [heard(page) for page in pages]
        assert all(one == told[0] for one in told)
        events, steps = [event for event, _ in told[0]], [row["steps"] for _, row in told[0]]
        assert (events[0], events[-1]) == ("appeared", "gone")
        assert set(events[1:-1]) <= {"grew", "ended"}
        assert steps == sorted(steps)
        assert max(steps) == 300
        assert client.json("/api/1/runs")["runs"] == []
        assert client.get(address)[0] == 404
