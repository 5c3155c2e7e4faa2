"""The process that reads runs, `python -m levada.web.child`: what lies in them cannot make the server large or stop it.

Questions come as JSON on the standard input, answers go to the standard output; both have their length before them. The
first answer is to no question, and says that all is loaded.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from levada._errors import MissingExtraError, import_extra
from levada.web.folder import RefusedError

__all__ = ["LENGTH", "MEMORY", "answer", "limit_memory"]

LENGTH: Final = struct.Struct("<IH")
"""Before an answer: its number of bytes and its status, of HTTP."""
MEMORY: Final = 2**30
"""Bytes that the process may take for itself, above what it has when it starts."""


def limit_memory(most: int) -> None:
    """Let the process take no more memory; where the system has no such limit, nothing.

    Args:
        most: bytes above what it has taken now.
    """
    if sys.platform == "win32" or sys.platform == "darwin":
        return
    import resource

    status = Path("/proc/self/statm")
    taken = int(status.read_text().split()[0]) * resource.getpagesize() if status.is_file() else 2**31
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = taken + most
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def answer(root: Path, question: bytes) -> tuple[int, bytes]:
    """Answer a question: give a status and JSON.

    Args:
        root: the served folder.
        question: JSON: {"ask": name, ...}, the rest being arguments.
    """
    from levada.web.opened import forget
    from levada.web.questions import QUESTIONS

    asked: dict[str, Any] = json.loads(question)
    try:
        return 200, QUESTIONS[asked.pop("ask")](root, **asked).model_dump_json().encode()
    except RefusedError as error:
        return error.status, _problem(str(error))
    except MissingExtraError as error:
        return 501, _problem(str(error))
    except MemoryError:
        forget()
        return 409, _problem("The run takes more memory than a page may: look at it with `levada report`.")
    except Exception as error:  # whatever a record holds, a reader of many is not stopped by one
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return 409, _problem(f"The run holds what levada does not write ({told}). Look at it with `levada doctor`.")


def _problem(sentence: str) -> bytes:
    return json.dumps({"detail": sentence}).encode()


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise SystemExit  # the server has ended
    return data


def _warm() -> None:
    """Load what answers need, and let Arrow reserve its addresses: what is taken before the limit does not count."""
    import levada.web.questions  # noqa: F401

    with suppress(MissingExtraError):
        import_extra("pyarrow.parquet", "store", "reading signals")
        import_extra("pyarrow", "store", "reading signals").array([0.0] * 2**16).cast("int64")


def main() -> None:
    """Answer until the server ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the server, which closes the pipe
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed gets between the answers
    _warm()
    limit_memory(MEMORY)
    root = Path(sys.argv[1])
    answers.write(LENGTH.pack(0, 200))
    answers.flush()
    while True:
        (size,) = struct.unpack("<I", _read(questions, 4))
        status, body = answer(root, _read(questions, size))
        try:
            answers.write(LENGTH.pack(len(body), status) + body)
            answers.flush()
        except BrokenPipeError:  # the server has ended
            os._exit(0)


if __name__ == "__main__":
    main()
