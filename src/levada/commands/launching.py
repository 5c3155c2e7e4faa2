"""Start the processes of one training on this machine, as torchrun does, and end with their exit code."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from levada._errors import UsageError

__all__ = ["launch"]

_INTERRUPTED = 130


def launch(words: Sequence[str], processes: int) -> int:
    """Run `levada` several times together, and return the exit code of the first process that failed; else 0.

    torchrun itself ends with 1 and a traceback of its own, whatever the code and the sentence of those that it started.

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
        elastic_launch(config, sys.executable)(*safe, "-m", "levada", *words)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode  # as a shell says what a signal ended
    except (KeyboardInterrupt, SignalException):
        return _INTERRUPTED
    finally:
        logging.disable(logging.NOTSET)
    return 0
