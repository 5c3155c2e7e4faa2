"""What asks the reading process: one question at a time, each within its time; a process that dies is replaced."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

from levada.web.child import LENGTH
from levada.web.folder import RefusedError

__all__ = ["Reader"]

SECONDS: Final = 30.0
_LARGEST: Final = 2**26  # bytes of an answer
_WAITING: Final = 32  # questions that may wait


@final
class Reader:
    """Asks about runs.

    Args:
        root: the served folder.
        seconds: that an answer may take.
    """

    def __init__(self, root: Path, seconds: float = SECONDS) -> None:
        self._root, self._seconds = root, seconds
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._process: asyncio.subprocess.Process | None = None

    async def ask(self, name: str, **values: Any) -> bytes:
        """Give the answer to a question, as JSON.

        Args:
            name: of `levada.web.questions`.
            values: its arguments.

        Raises:
            RefusedError: if there is none.
        """
        if self._waiting >= _WAITING:
            raise RefusedError(503, "Too many questions wait for an answer. Ask again in a moment.")
        self._waiting += 1
        try:
            async with self._turn:
                status, body = await self._answer(json.dumps({"ask": name, **values}).encode())
        finally:
            self._waiting -= 1
        if status != 200:
            raise RefusedError(status, str(json.loads(body)["detail"]))
        return body

    async def _answer(self, question: bytes) -> tuple[int, bytes]:
        try:
            return await asyncio.wait_for(self._exchange(question), self._seconds)
        except TimeoutError:
            await self.close()
            told = f"Reading the run takes longer than {self._seconds:.0f} s: look at it with `levada report`."
            raise RefusedError(409, told) from None
        except (asyncio.IncompleteReadError, OSError):
            await self.close()
            told = "The process that read the run has died of it: look at the run with `levada doctor`."
            raise RefusedError(409, told) from None
        except asyncio.CancelledError:
            await self.close()  # its answer would be taken for that to the next question
            raise

    async def _exchange(self, question: bytes) -> tuple[int, bytes]:
        process = await self._alive() or await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(struct.pack("<I", len(question)) + question)
        await process.stdin.drain()
        size, status = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        if size > _LARGEST:
            raise OSError("an answer is too large")
        return status, await process.stdout.readexactly(size)

    async def _alive(self) -> asyncio.subprocess.Process | None:
        """Return the process; one that ended since the last question, which is no matter of the next, is let go."""
        process = self._process
        if process is not None and process.returncode is not None:
            await self.close()
        return self._process

    async def _started(self) -> asyncio.subprocess.Process:
        words = (sys.executable, "-P", "-m", "levada.web.child", str(self._root))
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
        assert self._process.stdout is not None
        await self._process.stdout.readexactly(LENGTH.size)  # when all is loaded
        return self._process

    async def start(self) -> None:
        """Start the process, so that the first question does not wait for it."""
        async with self._turn:
            if await self._alive() is None:
                with suppress(asyncio.IncompleteReadError, OSError):
                    await self._started()

    async def close(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
