"""The process that reads runs, as the server has it: what is given up gets no other question's answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from levada.web.child import LENGTH
from levada.web.folder import RefusedError, identity
from levada.web.reader import Reader

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is stopped by a signal")


def alive(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def test_a_question_that_is_given_up_leaves_no_answer_for_the_next(root: Path) -> None:
    async def ask() -> str:
        reader = Reader(root)
        await reader.start()
        assert reader._process is not None
        first = reader._process.pid
        os.kill(first, signal.SIGSTOP)  # so that it has the question, and no answer yet
        given_up = asyncio.create_task(reader.ask("row", run="watched", id=identity("watched")))
        await asyncio.sleep(0.2)
        given_up.cancel()
        with suppress(asyncio.CancelledError):
            await given_up
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGCONT)
        try:
            assert not alive(first)
            return str(json.loads(await reader.ask("row", run="study", id=identity("study")))["name"])
        finally:
            await reader.close()

    assert asyncio.run(ask()) == "study"


@pytest.mark.parametrize("start", [False, True])
def test_a_process_that_ended_between_two_questions_is_started_anew(root: Path, start: bool) -> None:
    async def ask() -> str:
        reader = Reader(root)
        await reader.start()
        assert reader._process is not None
        os.kill(first := reader._process.pid, signal.SIGKILL)
        await reader._process.wait()
        try:
            if start:
                await reader.start()
                assert reader._process.pid != first
            return str(json.loads(await reader.ask("row", run="study", id=identity("study")))["name"])
        finally:
            await reader.close()

    assert asyncio.run(ask()) == "study"


def test_closing_ends_the_process_and_the_next_question_starts_another(root: Path) -> None:
    async def ask() -> None:
        reader = Reader(root)
        await reader.ask("row", run="watched", id=identity("watched"))
        assert reader._process is not None
        first = reader._process.pid
        await reader.close()
        assert (alive(first), reader._process) == (False, None)
        await reader.close()
        await reader.ask("row", run="watched", id=identity("watched"))
        assert reader._process is not None
        second = reader._process.pid
        await reader.close()
        assert (second != first, alive(second)) == (True, False)

    asyncio.run(ask())


def test_an_answer_that_is_too_large_is_not_taken_and_ends_its_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> str:
        reader = Reader(root)
        monkeypatch.setattr("levada.web.reader._LARGEST", 10)
        with pytest.raises(RefusedError, match="has died of it"):
            await reader.ask("row", run="watched", id=identity("watched"))
        assert reader._process is None
        monkeypatch.undo()
        try:
            return str(json.loads(await reader.ask("row", run="study", id=identity("study")))["name"])
        finally:
            await reader.close()

    assert asyncio.run(ask()) == "study"


def test_what_is_printed_gets_into_no_answer(root: Path) -> None:
    program = (
        "from levada.web import child\nreal = child.answer\n"
        "child.answer = lambda *given: (print('printed', flush=True), real(*given))[1]\nchild.main()"
    )
    question = json.dumps({"ask": "row", "run": "study", "id": "a" * 20}).encode()
    words = [sys.executable, "-P", "-c", program, str(root)]
    told = subprocess.run(words, input=struct.pack("<I", len(question)) + question, capture_output=True)
    first, (size, status) = LENGTH.unpack_from(told.stdout), LENGTH.unpack_from(told.stdout, LENGTH.size)
    assert (first, status) == ((0, 200), 200)
    assert json.loads(told.stdout[2 * LENGTH.size :])["name"] == "study"
    assert len(told.stdout) == 2 * LENGTH.size + size
    assert b"printed" in told.stderr


def test_what_takes_too_long_ends_its_process(root: Path) -> None:
    async def ask() -> None:
        reader = Reader(root, seconds=0.5)
        await reader.start()
        assert reader._process is not None
        first = reader._process.pid
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(RefusedError, match="takes longer than"):
            await reader.ask("row", run="watched", id=identity("watched"))
        assert not alive(first)
        await reader.close()

    asyncio.run(ask())
