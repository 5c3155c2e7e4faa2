"""What lets pages compute: few processes at a time, each with a limit of time and of memory."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Final, final

from levada.web.folder import RefusedError
from levada.web.network import CheckOf

__all__ = ["MAX_PROCESSES", "Computation"]

MAX_PROCESSES: Final = 2
_SECONDS: Final = 90.0
_LARGEST: Final = 2**24  # bytes of an answer


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

    async def check(self, asked: CheckOf) -> bytes:
        """Give what the rules say of a network, as JSON.

        Args:
            asked: its description.

        Raises:
            RefusedError: if it is too large, too many are computed, or it takes too long or too much.
        """
        if excess := asked.excess:
            raise RefusedError(422, excess)
        if self._running >= MAX_PROCESSES:
            raise RefusedError(429, f"{MAX_PROCESSES} networks are computed already, which is the limit. Wait for one.")
        self._running += 1
        try:
            return await self._computed(asked.model_dump_json(by_alias=True, exclude_unset=True).encode())
        finally:
            self._running -= 1

    async def _computed(self, asked: bytes) -> bytes:
        pipe, words = asyncio.subprocess.PIPE, (sys.executable, "-P", "-m", self._program)
        given = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, env=given)
        try:
            body, _ = await asyncio.wait_for(process.communicate(asked), self._seconds)
        except TimeoutError:
            told = f"The network takes longer than {self._seconds:.0f} s here: make it smaller, or use `levada check`."
            raise RefusedError(422, told) from None
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode or not body or len(body) > _LARGEST:
            raise RefusedError(422, "The network takes more than it may here: make it smaller, or use `levada check`.")
        return body
