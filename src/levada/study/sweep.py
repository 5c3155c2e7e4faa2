"""Run the cells of a static grid on any `concurrent.futures` executor."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias

from levada._errors import UsageError
from levada.study.results import Cell

__all__ = ["ATTEMPTS", "RunFunction", "Task", "num_cores", "order", "process_pool", "sweep", "sweep_tasks"]

ATTEMPTS: Final = 3  # of a cell whose worker died

RunFunction: TypeAlias = Callable[[Mapping[str, Any], Sequence[int]], list[dict[str, Any]]]


class Task(NamedTuple):
    """A cell, and the function that computes it."""

    run: RunFunction
    cell: Cell


# What is told of a task: its values, and the processor seconds that they took.
Done: TypeAlias = Callable[[Task, list[dict[str, Any]], float], None]
Failed: TypeAlias = Callable[[Task, Exception], None]


def sweep(
    run: RunFunction,
    cells: Sequence[Cell],
    *,
    done: Callable[[Cell, list[dict[str, Any]]], None],
    failed: Callable[[Cell, Exception], None],
    executor: Executor | None = None,
) -> None:
    """Run every cell; give each result to `done` and each exception to `failed`, in the order in which they come.

    One cell's exception does not stop the others. Where the processes are this function's own and one dies (killed, or
    out of memory), the cells that were at work are run again, each alone, up to `ATTEMPTS` times. An interruption
    (Ctrl-C) cancels what has not begun and, where the processes are this function's own, ends them.

    Args:
        run: (config, seeds) -> one dictionary of values for each seed.
        cells: the cells, the most expensive first.
        done: called in this process, with the cell and its values.
        failed: called in this process, with the cell and the exception.
        executor: runs the cells; left out, one process per core with one thread each. `levada.study.executors` has
            others, for clusters.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> found = {}
        >>> with ThreadPoolExecutor(2) as pool:
        ...     sweep(lambda config, seeds: [{"y": config["x"] ** 2} for _ in seeds],
        ...           [Cell({"x": x}, [0]) for x in (2, 3)], executor=pool, failed=print,
        ...           done=lambda cell, values: found.update({cell.config["x"]: values[0]["y"]}))
        >>> sorted(found.items())
        [(2, 4), (3, 9)]
    """
    sweep_tasks(
        [Task(run, cell) for cell in order(cells)],
        done=lambda task, values, seconds: done(task.cell, values),
        failed=lambda task, error: failed(task.cell, error),
        executor=executor,
    )


def sweep_tasks(tasks: Sequence[Task], *, done: Done, failed: Failed, executor: Executor | None = None) -> None:
    """Run cells of one or several studies, as `sweep` does, in the order in which they are given.

    Args:
        tasks: the cells, each with the function that computes it.
        done: called in this process, with the task, its values and the processor seconds that they took.
        failed: called in this process, with the task and the exception.
        executor: as for `sweep`.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(1) as pool:
        ...     sweep_tasks([Task(lambda config, seeds: [{"y": seed} for seed in seeds], Cell({}, [4, 5]))],
        ...                 done=lambda task, values, seconds: print(values, seconds >= 0), failed=print, executor=pool)
        [{'y': 4}, {'y': 5}] True
    """
    if not tasks:
        return
    if executor is None:
        _run_locally(tasks, done, failed)
    else:
        died, unbegun = _collect(tasks, done, failed, executor, window=len(tasks))
        for task, error in (*died, *((task, died[-1][1]) for task in unbegun)):
            failed(task, error)


def _run_locally(tasks: Sequence[Task], done: Done, failed: Failed) -> None:
    """Run the cells in processes of this machine; after a death, those that were at work again, each alone.

    A pool does not say whose process died. Alone, a cell that kills its process is told from one that was beside it.
    """
    waiting, attempts = list(tasks), Counter[Task]()
    while waiting:
        alone = [task for task in waiting if attempts[task]][:1]
        batch = alone or waiting
        workers = min(len(batch), num_cores())
        with process_pool(workers) as pool:
            died, unbegun = _collect(batch, done, failed, pool, window=workers)
        attempts.update(task for task, _ in died)
        for task, error in died:
            if attempts[task] >= ATTEMPTS:
                failed(task, error)
        again = [task for task, _ in died if attempts[task] < ATTEMPTS]
        waiting = [*again, *(task for task in waiting if task not in batch), *unbegun]


def _collect(
    tasks: Sequence[Task],
    done: Done,
    failed: Failed,
    executor: Executor,
    *,
    window: int,
) -> tuple[list[tuple[Task, Exception]], list[Task]]:
    """Run cells, `window` at a time; return those whose worker died, with the error, and those that never began."""
    unbegun, at_work = deque(tasks), dict[Future[tuple[list[dict[str, Any]], float]], Task]()
    died: list[tuple[Task, Exception]] = []
    try:
        while at_work or (unbegun and not died):
            while unbegun and not died and len(at_work) < window:
                task = unbegun.popleft()
                try:
                    at_work[executor.submit(_run_cell, task.run, task.cell.config, task.cell.seeds)] = task
                except BrokenExecutor as broken:  # a worker died since the last look: what is at work will say so too
                    if at_work:
                        unbegun.appendleft(task)
                    else:
                        died.append((task, broken))
                    break
            finished = wait(at_work, return_when=FIRST_COMPLETED).done
            for future in [future for future in at_work if future in finished]:  # a set has no order of its own
                task, error = at_work.pop(future), future.exception()
                if error is None:
                    done(task, *future.result())
                elif isinstance(error, BrokenExecutor):
                    died.append((task, error))
                elif isinstance(error, Exception):
                    failed(task, error)
                else:
                    raise error
    except BaseException:
        for future in at_work:
            future.cancel()
        raise
    return died, list(unbegun)


def order(cells: Sequence[Cell]) -> list[Cell]:
    """Put the cheapest quarter, two cells at most, before the others: a first sign of progress, and early failures.

    The rest stays the most expensive first, and ends with cheap ones, so that the workers end together.
    """
    early = min(2, len(cells) // 4)
    return [*reversed(cells[len(cells) - early :]), *cells[: len(cells) - early]]


def _run_cell(run: RunFunction, config: Mapping[str, Any], seeds: Sequence[int]) -> tuple[list[dict[str, Any]], float]:
    # Processor time: what else the machine does meanwhile is not the cell's cost.
    began = time.process_time()
    try:
        values = run(config, seeds)
    except (Exception, SystemExit) as error:
        if not _crosses(error):
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
    seconds = time.process_time() - began
    rule = f"a study's run gives one dictionary for each of {len(seeds)} seeds"
    if not isinstance(values, list | tuple):
        raise UsageError(f"{rule}, got {type(values).__name__}.")
    if len(values) != len(seeds) or not all(isinstance(one, dict) for one in values):
        kinds = ", ".join(sorted({type(one).__name__ for one in values})) or "nothing"
        raise UsageError(f"{rule}, got {len(values)} of {kinds}.")
    json.dumps(values)  # what a run folder cannot hold is this cell's failure, not the sweep's
    return values, seconds


def _crosses(error: BaseException) -> bool:
    """Whether an exception is one cell's alone, and arrives in another process as it is.

    `SystemExit` ends whoever hears of it; one that is not made of its own arguments breaks the pool that reads it.
    """
    try:
        other = pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return isinstance(error, Exception) and type(other) is type(error) and str(other) == str(error)


@contextmanager
def process_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each, that end with this one, and at once when the block is left by an exception.

    A program that uses it guards its entry point with `if __name__ == "__main__":`, as processes are spawned.

    Args:
        num_workers: number of processes.
    """
    before = set(multiprocessing.active_children())
    # Forking a process that has run torch is not safe: its thread pools do not come along.
    pool = _SilentPool(num_workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown()


class _SilentPool(ProcessPoolExecutor):
    """A pool whose workers never answer Ctrl-C, which reaches the whole group: the parent alone does."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with _interruptions_held():  # a worker is spawned here, inherits the mask, and imports torch for seconds
            return super().submit(fn, *args, **kwargs)


@contextmanager
def _interruptions_held() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)  # the parent was killed: nobody waits for this process


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
