"""Where a sweep runs besides this machine's processes: Slurm through submitit, and Ray."""

from __future__ import annotations

import importlib
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from levada._errors import UsageError, require_at_least, require_number
from levada.study.sweep import ATTEMPTS, num_cores

_PATIENCE = 600.0  # seconds for which a dead job's resubmission may be refused

__all__ = ["EXECUTORS", "JOBS", "RayExecutor", "SubmititExecutor", "executor"]


class _RemoteError(Exception):
    """The traceback of another process, as the cause of the error that it raised there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class WorkerDiedError(BrokenExecutor):
    """A worker ended without a result, as often as it was tried."""


def _guarded(threads: int, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Call in a worker: the value, or the exception as what any two processes can exchange."""
    import torch

    torch.set_num_threads(threads)
    try:
        return fn(*args, **kwargs), None
    except Exception as error:
        return None, (type(error).__module__, type(error).__qualname__, str(error), traceback.format_exc())


def _settle(future: Future[Any], value: Any, told: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if told is None:
        future.set_result(value)
        return
    module, name, message, trace = told
    known = module in ("builtins", UsageError.__module__)
    kind = getattr(importlib.import_module(module), name, RuntimeError) if known else None
    try:
        error = kind(message) if kind is not None else RuntimeError(f"{name}: {message}")
    except TypeError:  # an exception that is not made of one message, such as UnicodeDecodeError
        error = RuntimeError(f"{name}: {message}")
    error.__cause__ = _RemoteError(trace)
    future.set_exception(error)


def _fail(future: Future[Any], error: BaseException) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


@final
class SubmititExecutor(Executor):
    """A `concurrent.futures` executor over submitit: Slurm jobs, or with `cluster="local"` processes of this machine.

    A job that ends without a result (preempted, killed, out of memory) is submitted again, up to three times in all.

    Args:
        folder: where submitit keeps what jobs read and write; a cluster's nodes must see it.
        cluster: "slurm" or "local".
        poll_seconds: how often jobs are asked whether they are done.
        options: go to `submitit.AutoExecutor.update_parameters`, such as `slurm_partition`, `timeout_min`, `mem_gb`.

    Raises:
        UsageError: if submitit is not installed, there is no Slurm here, or an option is not known.

    Example:
        >>> import tempfile
        >>> with SubmititExecutor(tempfile.mkdtemp(), cluster="local", timeout_min=5) as jobs:
        ...     jobs.submit(pow, 2, 10).result()
        1024

    Source: submitit, github.com/facebookincubator/submitit.
    """

    def __init__(
        self, folder: str | Path, *, cluster: str = "slurm", poll_seconds: float = 0.5, **options: Any
    ) -> None:
        submitit = _import("submitit", "SubmititExecutor")
        require_number("SubmititExecutor", "poll_seconds", poll_seconds)
        if not 0 < poll_seconds < math.inf:
            raise UsageError(f"SubmititExecutor: poll_seconds must be above 0, got {poll_seconds}.")
        if cluster not in ("slurm", "local"):
            raise UsageError(f"SubmititExecutor: cluster is 'slurm' or 'local', got {cluster!r}.")
        try:
            self._jobs = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
            self._jobs.update_parameters(**{"timeout_min": 24 * 60, "cpus_per_task": 1, **options})
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            told = " ".join(str(error).split())
            raise UsageError(
                f"SubmititExecutor: submitit refuses cluster {cluster!r} with {options}: {told}"
            ) from error
        self._threads = int(options.get("cpus_per_task", 1))
        self._poll = poll_seconds
        self._held: dict[Future[Any], tuple[Any, tuple[Any, ...], int]] = {}
        self._refused: dict[Future[Any], float] = {}  # since when a job could not be submitted again
        self._lock = threading.Lock()
        self._closed = False
        self._watcher: threading.Thread | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a job."""
        if self._closed:
            raise RuntimeError("SubmititExecutor: jobs are submitted before shutdown.")
        future: Future[Any] = Future()
        call = (_guarded, (self._threads, fn, *args), kwargs)
        with self._lock:
            self._held[future] = self._jobs.submit(_guarded, self._threads, fn, *args, **kwargs), call, 1
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()
        return future

    def _watch(self) -> None:
        while True:
            with self._lock:
                held = dict(self._held)
                if not held:
                    self._watcher = None
                    return
            for future, (job, call, attempt) in held.items():
                try:
                    if future.cancelled():
                        job.cancel()
                        self._forget(future)
                    elif job.done():
                        self._take(future, job, call, attempt)
                except Exception as error:  # of this job alone: the others are watched on
                    self._forget(future)
                    _fail(future, error)
            time.sleep(self._poll)

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._held.pop(future, None)
            self._refused.pop(future, None)

    def _take(self, future: Future[Any], job: Any, call: tuple[Any, ...], attempt: int) -> None:
        from submitit.core.utils import UncompletedJobError

        function, args, kwargs = call
        try:
            value, told = job.result()
        except UncompletedJobError as error:
            if attempt < ATTEMPTS:
                try:
                    again = self._jobs.submit(function, *args, **kwargs)
                except Exception:  # a controller may be away for some minutes
                    if time.monotonic() - self._refused.setdefault(future, time.monotonic()) > _PATIENCE:
                        raise
                    return
                with self._lock:
                    self._held[future] = again, call, attempt + 1
                return
            reason = " ".join(str(error).split())
            _fail(future, WorkerDiedError(f"the job ended {attempt} times without a result: {reason}"))
        except Exception as error:  # what submitit itself could not do, such as read the result
            _fail(future, error)
        else:
            _settle(future, value, told)
        self._forget(future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; wait for those that run, or cancel them."""
        self._closed = True
        with self._lock:
            watcher, held = self._watcher, dict(self._held)
        if cancel_futures:
            for future, (job, _, _) in held.items():
                future.cancel()
                job.cancel()
        elif wait and watcher is not None:
            watcher.join()


@final
class RayExecutor(Executor):
    """A `concurrent.futures` executor over Ray: this machine's cores, or with `address` a cluster.

    Ray runs a task again whose worker died, up to three times in all. Results come back through Ray: no shared file
    system is needed. A Ray that runs in this process is used as it is, and left running.

    Args:
        address: of a cluster, such as "auto"; left out, Ray is started on this machine and ended with the executor.
        num_cpus: cores of one task, which has as many threads.
        options: go to `ray.init`.

    Raises:
        UsageError: if Ray is not installed, or cannot be started or reached.

    Source: ray, github.com/ray-project/ray.
    """

    def __init__(self, *, address: str | None = None, num_cpus: int = 1, **options: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        self._ray = _import("ray", "RayExecutor")
        require_at_least("RayExecutor", "num_cpus", num_cpus, 1)
        self._own = not self._ray.is_initialized()
        if self._own:
            here = {"num_cpus": num_cores(), "include_dashboard": False} if address is None else {"address": address}
            try:
                self._ray.init(**{**here, "log_to_driver": False, "logging_level": "error", **options})
            except Exception as error:
                told = " ".join(str(error).split())
                raise UsageError(f"RayExecutor: Ray did not start: {told}. Check address and options.") from error
        self._threads = num_cpus
        self._task = self._ray.remote(num_cpus=num_cpus, max_retries=ATTEMPTS - 1, retry_exceptions=False)(_guarded)
        self._held: dict[Future[Any], Any] = {}
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a task."""
        if self._closed:
            raise RuntimeError("RayExecutor: tasks are submitted before shutdown.")
        future: Future[Any] = Future()
        reference = self._task.remote(self._threads, fn, *args, **kwargs)
        self._held[future] = reference

        def arrived(inner: Future[Any]) -> None:
            self._held.pop(future, None)
            error = inner.exception()
            if error is None:
                _settle(future, *inner.result())
            elif isinstance(error, self._ray.exceptions.WorkerCrashedError | self._ray.exceptions.OutOfMemoryError):
                _fail(future, WorkerDiedError(f"the worker died {ATTEMPTS} times: {error}"))
            else:
                _fail(future, error)

        reference.future().add_done_callback(arrived)
        future.add_done_callback(lambda f: self._ray.cancel(reference, force=True) if f.cancelled() else None)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the tasks, or cancel them; end Ray if this executor began it."""
        self._closed = True
        for future in list(self._held):
            if cancel_futures:
                future.cancel()
            elif wait:
                future.exception()
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()
            self._own = False


JOBS = ".jobs"
"""The folder, beside the runs, where an executor that is named keeps its files."""
EXECUTORS: Mapping[str, Callable[..., Executor]] = {"slurm": SubmititExecutor, "ray": RayExecutor}


@contextmanager
def executor(name: str, folder: str | Path, settings: Mapping[str, Any] | None = None) -> Iterator[Executor | None]:
    """Make an executor by name, and end it: at once when the block is left by an exception.

    Args:
        name: "local" (yields None: `sweep` makes its own processes), "slurm" or "ray".
        folder: where an executor keeps its files.
        settings: its options, by name.

    Raises:
        UsageError: if the name or an option is not known.
    """
    given = dict(settings or {})
    if name == "local":
        if given:
            raise UsageError(f"the local executor has no options, got {', '.join(given)}. Choose slurm or ray.")
        yield None
        return
    if name not in EXECUTORS:
        raise UsageError(f"an executor is local, slurm or ray, got {name!r}. Name one of them, or give an executor.")
    made = SubmititExecutor(folder, **given) if name == "slurm" else RayExecutor(**given)
    try:
        yield made
    except BaseException:
        made.shutdown(wait=False, cancel_futures=True)
        raise
    made.shutdown()


def _import(package: str, who: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"{who}: {package} must be installed. Run: pip install 'levada[cluster]'") from error
