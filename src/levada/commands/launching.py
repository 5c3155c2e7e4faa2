"""Start the processes of one training on this machine, as torchrun does, and end with their exit code."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from levada._errors import UsageError
from levada.commands.output import tell
from levada.runs.checkpoints import CHECKPOINTS, stored
from levada.runs.manifest import MANIFEST

__all__ = ["end_with_launcher", "going_on", "launch"]

_TAKEN: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # torch handles these, and gives none back
_LAUNCHER: Final = "LEVADA_LAUNCHER"  # the number of the process that started this one
_LOOK: Final = 1.0  # seconds between looks at whether it lives
_MEANT: Final = {
    "SIGKILL": ", as the system does where memory runs out, and a scheduler where a limit is passed",
    "SIGTERM": ", as schedulers do",
    "SIGSEGV": ", a defect in compiled code (python -X faulthandler shows where)",
    "SIGBUS": ", as where shared memory or a disk is full",
    "SIGABRT": ", as compiled code does that finds itself in a wrong state",
    "SIGXCPU": ", as where a limit of processor time is passed",
}


def launch(words: Sequence[str], processes: int, folder: Path) -> int:
    """Run `levada` several times together, and return the exit code of the first process that failed; else 0.

    torchrun itself ends with 1 and a traceback of its own, whatever the code and the sentence of those that it started.
    A signal to this process goes on to all of them, and the code is 128 + its number, as in a shell. One that is
    ignored, as SIGHUP is under nohup, stays ignored in all of them.

    Args:
        words: the command line of each process.
        processes: how many.
        folder: of the run that they make.

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
        signals_to_handle=",".join(name for name, handler in _handlers().items() if handler != signal.SIG_IGN),
    )
    safe = ["-P"] if sys.flags.safe_path else []
    logging.disable(logging.CRITICAL)  # this process trains nothing; torch's part tells of each process that ends
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        with _handlers_kept():
            elastic_launch(config, sys.executable)(*safe, "-m", "levada", *words)
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode > 0:
            return first.exitcode
        # It had no time to say so.
        tell(f"levada {words[0]}: {_killed(rank, -first.exitcode, words, processes, folder)}", stderr=True)
        return 128 - first.exitcode  # as a shell says what a signal ended
    except SignalException as ended:
        # Of Ctrl-C the first process tells. Any other ends them without a word, and SIGHUP the terminal as well.
        with suppress(OSError):
            tell(going_on([*words, "--processes", str(processes)], folder), stderr=True)
            if ended.sigval != signal.SIGINT:
                tell(f"levada {words[0]}: ended by {ended.sigval.name}; what was finished is kept.", stderr=True)
        return 128 + ended.sigval
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop(_LAUNCHER, None)
    return 0


def end_with_launcher() -> None:
    """End this process, as SIGTERM does, once the `levada train --processes` that started it is gone.

    One that is killed by SIGKILL can end nothing: its processes trained on, unseen, and kept the run to themselves.
    Where the system does not say that a parent is gone, as on Windows, nothing is done.
    """
    launcher = os.environ.get(_LAUNCHER, "")
    if not launcher.isdecimal() or os.getppid() != int(launcher):
        return

    def look() -> None:
        while os.getppid() == int(launcher):
            # All look at the same moments: one that ends a second before the others is an error to them.
            time.sleep(_LOOK - time.time() % _LOOK)
        if os.environ.get("RANK") == "0":
            with suppress(OSError):  # the terminal may be gone, too
                tell("levada train: what started the processes was killed; they end, as by SIGTERM.", stderr=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="levada-launcher", daemon=True).start()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back at the end what handled the signals that torch's launcher takes."""
    before = _handlers()
    try:
        yield
    finally:
        for name, handler in before.items():
            number = getattr(signal, name)
            # None was not set from Python, which cannot set it again; outside of the main thread torch took nothing.
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _handlers() -> dict[str, Any]:
    """Return what handles each of the signals that torch's launcher takes."""
    return {name: signal.getsignal(getattr(signal, name)) for name in _TAKEN if hasattr(signal, name)}


def _killed(rank: int, number: int, words: Sequence[str], processes: int, folder: Path) -> str:
    """Say of a process that a signal ended what that may mean, where its run is, and how to go on."""
    known = {taken.value: taken.name for taken in signal.Signals}
    name = known.get(number, f"signal {number}")
    told = f"process {rank} of {processes} was ended by {name}{_MEANT.get(name, '')}. The others were ended too. "
    return told + going_on([*words, "--processes", str(processes)], folder)


def going_on(words: Sequence[str], folder: Path) -> str:
    """Say of a training that did not end where its run is, after which step it goes on, and by which command.

    Args:
        words: the command line that began it.
        folder: of the run.

    Example:
        >>> going_on(["train", "a.toml"], Path("no/such/folder"))
        "No run was begun in 'no/such/folder': give the command again."
    """
    if not (folder / MANIFEST).exists():
        return f"No run was begun in {str(folder)!r}: give the command again."
    newest = next((one.step for one in stored(folder / CHECKPOINTS) if not one.damage), None)
    command, config, *options = words
    again = [command, config, *options]
    if "--resume" not in options:
        place = options.index("--processes") if "--processes" in options else len(options)
        again[2:] = [*options[:place], "--resume", *options[place:]]
    where = "from its beginning, as it has no complete checkpoint"
    if newest is not None:
        where = f"after step {newest}, its newest checkpoint"
    return f"The run is kept in {str(folder)!r}, and goes on {where}: {shlex.join(['levada', *again])}"
