"""What looks for runs, once for all clients: the list, and what is told to those that listen."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

from levada import __version__
from levada.web.folder import RefusedError, found_in, identity, stamp
from levada.web.reader import Reader
from levada.web.shapes import News, Row, Runs, plain

__all__ = ["MAX_LISTENERS", "Scanner"]

MAX_LISTENERS: Final = 64
_log: Final = logging.getLogger("levada.web")
_UNTOLD: Final = 256  # news that a listener may be behind; then it is let go, and comes again
_FIRST: Final = 5.0  # seconds that the first list waits
_SHARE: Final = 10  # looking takes about one part in so many of the time
_ID: Final = re.compile(r"[a-z2-7]{20}")
_SHOWN: Final = 60  # characters of what is no name of a run
_LATEST: Final = 30.0  # seconds after which all is looked at again, however long that takes
Kind = Literal["appeared", "grew", "ended", "gone"]


@dataclass(slots=True)
class _Known:
    """A run, as it was when it was last read."""

    name: str
    seen: Any = None
    row: Row | None = None
    next: float = 0.0


@final
class Scanner:
    """Knows the runs below a folder.

    Args:
        root: the served folder.
        reader: what reads them.
        every: seconds between two looks.
        heartbeat: seconds after which a listener hears that nothing happened.
        folder: what the served folder is called; empty for one that nobody has chosen.
    """

    def __init__(
        self, root: Path, reader: Reader, every: float = 2.0, heartbeat: float = 15.0, folder: str = ""
    ) -> None:
        self._root, self._reader, self._every, self._heartbeat = root, reader, every, heartbeat
        self._folder: str = plain(folder)
        self._known: dict[str, _Known] = {}
        self._left_out = 0
        self._found, self._looked, self._new = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._ended = False
        self._listeners: set[asyncio.Queue[News | None]] = set()

    async def run(self) -> None:
        """Look again and again: reading what is slow to read holds up no word of what is gone."""
        await asyncio.gather(self._again(self._find, self._found), self._again(self._read_changed, self._looked))

    async def _again(self, act: Callable[[], Awaitable[float]], done: asyncio.Event) -> None:
        while True:
            spent = 0.0
            try:
                spent = await act()
            except Exception:  # the next look may find the folder as it should be
                _log.exception("looking for runs failed, which is a defect of levada")
            done.set()
            pause = max(self._every, min(_LATEST, _SHARE * spent))
            if done is self._found:
                await asyncio.sleep(pause)
                continue
            with suppress(TimeoutError):  # what is new is read at once
                await asyncio.wait_for(self._new.wait(), pause)

    async def look(self) -> None:
        """Look once: find runs, and read those that have changed, the newest first."""
        await self._find()
        await self._read_changed()

    async def _find(self) -> float:
        """Find runs; give the seconds that it took."""
        began = time.monotonic()
        names, self._left_out = await asyncio.to_thread(found_in, self._root)
        spent = time.monotonic() - began
        ids = {identity(name): name for name in names}
        for id in [id for id in self._known if id not in ids]:
            gone = self._known.pop(id)
            # Also of one that was not read yet: a page that was opened by its link shows it.
            self._tell("gone", gone.row or _unreadable(id, gone.name, 0.0, ""))
        if ids.keys() - self._known.keys():
            self._new.set()
        for id, name in ids.items():
            self._known.setdefault(id, _Known(name))
        self._found.set()
        return spent

    async def _read_changed(self) -> float:
        """Read what has changed; give the seconds that it took to see what has: reading has a pause for each run."""
        await self._found.wait()
        self._new.clear()
        await self._reader.start()
        began = time.monotonic()
        stamps = await asyncio.to_thread(self._stamps, {id: one.name for id, one in self._known.items()})
        spent = time.monotonic() - began
        for id, seen in sorted(stamps.items(), key=lambda one: -one[1][1]):
            one = self._known.get(id)
            if one is not None and seen != one.seen and time.monotonic() >= one.next:
                await self._read(id, one, seen)
        return spent

    def _stamps(self, ids: dict[str, str]) -> dict[str, Any]:
        found = {}
        for id, name in ids.items():
            with suppress(OSError):
                found[id] = stamp(self._root / name)
        return found

    async def _read(self, id: str, one: _Known, seen: Any) -> None:
        await self._reader.start()  # which may have died of the run before: that is no time of this one
        began = time.monotonic()
        before, one.seen = one.row, seen
        try:
            one.row = Row.model_validate_json(await self._reader.ask("row", run=one.name, id=id))
        except RefusedError as error:
            if error.status == 503:
                one.seen = None
                return
            one.row = _unreadable(id, one.name, seen[1] / 1e9, str(error))
        one.next = time.monotonic() + min(_LATEST, _SHARE * (time.monotonic() - began))
        if self._known.get(id) is not one:
            return  # it was taken away meanwhile, which is told
        if before is None:
            self._tell("appeared", one.row)
        elif one.row != before:
            self._tell("ended" if before.state == "running" != one.row.state else "grew", one.row)

    def _tell(self, what: Kind, row: Row) -> None:
        for listener in list(self._listeners):
            try:
                listener.put_nowait(News(event=what, run=row))
            except asyncio.QueueFull:
                self._listeners.discard(listener)
                listener.get_nowait()
                listener.put_nowait(None)

    async def listed(self) -> Runs:
        """Give the list; at the beginning, wait a little for the first look."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._looked.wait(), _FIRST)
        rows = sorted((one.row for one in self._known.values() if one.row), key=lambda row: -row.modified)
        waiting = sum(one.row is None for one in self._known.values())
        return Runs(runs=rows, waiting=waiting, left_out=self._left_out, version=__version__, folder=self._folder)

    async def name_of(self, id: str) -> str:
        """Give the path of a run from the served folder on; at the beginning, wait a little for what is found.

        Args:
            id: its opaque name.

        Raises:
            RefusedError: if there is none.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._found.wait(), _FIRST)
        if id not in self._known:
            told = plain(id if len(id) <= _SHOWN else f"{id[:_SHOWN]}…")
            if _ID.fullmatch(id):
                raise RefusedError(404, f"There is no run {told}: it may have been moved. Ask for the list again.")
            raise RefusedError(404, f"There is no run named {told!r}. Ask for the list: it has the link of each.")
        return self._known[id].name

    @contextmanager
    def listening(self) -> Iterator[AsyncIterator[bytes]]:
        """Give what happens from now on, as server-sent events; the place is kept until the context ends.

        Raises:
            RefusedError: if too many listen.
        """
        if len(self._listeners) >= MAX_LISTENERS:
            raise RefusedError(503, f"{MAX_LISTENERS} pages listen already, which is the limit. Close one.")
        queue: asyncio.Queue[News | None] = asyncio.Queue(_UNTOLD)
        self._listeners.add(queue)  # before anything waits: those that ask at the same moment count each other
        try:
            yield self._stream(queue)
        finally:
            self._listeners.discard(queue)

    def end(self) -> None:
        """Let all that listen go."""
        self._ended = True
        for listener in self._listeners:
            while not listener.empty():
                listener.get_nowait()
            listener.put_nowait(None)

    async def _stream(self, queue: asyncio.Queue[News | None]) -> AsyncIterator[bytes]:
        yield b"retry: 2000\n\n"
        while not self._ended:
            try:
                news = await asyncio.wait_for(queue.get(), self._heartbeat)
            except TimeoutError:
                yield b"event: heartbeat\ndata: {}\n\n"
                continue
            if news is None:
                return
            yield f"event: {news.event}\ndata: {news.run.model_dump_json()}\n\n".encode()


def _unreadable(id: str, name: str, modified: float, problem: str) -> Row:
    return Row(
        id=id,
        name=name.encode("utf-8", errors="backslashreplace").decode(),
        title="",
        kind="",
        state="not ended",
        verdict=None,
        until="",
        steps=0,
        depth=0,
        loss=None,
        modified=modified,
        problem=problem,
    )
