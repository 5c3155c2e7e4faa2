"""What lets pages compute: few processes at a time, each with a limit of time and of memory."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, final

from levada.web.folder import RefusedError
from levada.web.network import CheckOf

__all__ = ["MAX_PROCESSES", "Computation"]

MAX_PROCESSES: Final = 2
_SECONDS: Final = 90.0
_LARGEST: Final = 2**24  # bytes of an answer

_SLOW: Final = "The network takes longer than {:.0f} s here: make it smaller, or use `levada check`."
_NO_ONE: Final = "No one waits for the answer any more."


@final
class Computation:
    """Computes in processes of their own.

    Args:
        seconds: that one may take.
        program: the module that computes.
    """

    def __init__(self, seconds: float = _SECONDS, program: str = "levada.web.computing") -> None:
        self._seconds, self._program = seconds, program
        self._running = 0

    async def check(self, asked: CheckOf, gone: Callable[[], Awaitable[None]]) -> bytes:
        """Give what the rules say of a network, as JSON.

        Args:
            asked: its description.
            gone: returns when no one waits for the answer any more.

        Raises:
            RefusedError: if it is too large, too many are computed, it takes too long or too much, or no one waits.
        """
        if excess := asked.excess:
            raise RefusedError(422, excess)
        if self._running >= MAX_PROCESSES:
            raise RefusedError(429, f"{MAX_PROCESSES} networks are computed already, which is the limit. Wait for one.")
        self._running += 1
        try:
            return await self._computed(asked.model_dump_json(by_alias=True, exclude_unset=True).encode(), gone)
        finally:
            self._running -= 1

    async def _computed(self, asked: bytes, gone: Callable[[], Awaitable[None]]) -> bytes:
        pipe, words = asyncio.subprocess.PIPE, (sys.executable, "-P", "-m", self._program)
        given = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, env=given)
        talk, left = asyncio.ensure_future(process.communicate(asked)), asyncio.ensure_future(gone())
        try:
            await asyncio.wait((talk, left), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if not talk.done():
                raise RefusedError(422, _NO_ONE if left.done() else _SLOW.format(self._seconds))
            body, _ = talk.result()
        finally:
            talk.cancel()
            left.cancel()
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.gather(talk, left, process.wait(), return_exceptions=True)
        if process.returncode or not body or len(body) > _LARGEST:
            raise RefusedError(422, "The network takes more than it may here: make it smaller, or use `levada check`.")
        return body
