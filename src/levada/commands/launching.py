"""Start the processes of one training on this machine, as torchrun does, and end with their exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from levada._errors import UsageError
from levada.commands.output import tell

__all__ = ["launch"]

_TAKEN: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # torch handles these, and gives none back


def launch(words: Sequence[str], processes: int) -> int:
    """Run `levada` several times together, and return the exit code of the first process that failed; else 0.

    torchrun itself ends with 1 and a traceback of its own, whatever the code and the sentence of those that it started.
    A signal to this process goes on to all of them, and the code is 128 + its number, as in a shell.

    Args:
        words: the command line of each process.
        processes: how many.

    Raises:
        UsageError: if this process is one of several already.
    """
    if "RANK" in os.environ:
        raise UsageError(f"--processes starts them, got {processes} under torchrun, which has. Leave it out.")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    safe = ["-P"] if sys.flags.safe_path else []
    logging.disable(logging.CRITICAL)  # this process trains nothing; torch's part tells of each process that ends
    try:
        with _handlers_kept():
            elastic_launch(config, sys.executable)(*safe, "-m", "levada", *words)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode  # as a shell says what a signal ended
    except SignalException as ended:
        # Of Ctrl-C the first process tells. Any other ends them without a word, and SIGHUP the terminal as well.
        if ended.sigval != signal.SIGINT:
            with suppress(OSError):
                tell(f"levada {words[0]}: ended by {ended.sigval.name}; what was finished is kept.", stderr=True)
        return 128 + ended.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back at the end what handled the signals that torch's launcher takes."""
    numbers = [getattr(signal, name) for name in _TAKEN if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None was not set from Python, which cannot set it again; outside of the main thread torch took nothing.
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
