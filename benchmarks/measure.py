"""Ratios of two programs that were checked to do the same and then timed in turns, one process, one setting of threads.

A time on a shared machine means little; the ratio of two times taken one after the other means more, and the median of
many such ratios, with its quartiles, is what is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import levada

__all__ = [
    "PACKAGES",
    "Program",
    "Row",
    "compare_bytes",
    "compare_times",
    "main",
    "peak_bytes",
    "ratio_of",
    "require_equal",
]

Program = Callable[[], Sequence[Tensor]]
"""Runs once and returns what it computed: outputs and gradients."""

PACKAGES = ("triton", "numba", "hyper-connections", "liger-kernel", "tile-kernels", "flash-linear-attention")
"""What compiles levada's kernels, and what offers the same operations: rows name those that are installed."""

_MIN_REPETITIONS = 7


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a results file: `ratio` is candidate over baseline, good if its median is at most `target`."""

    benchmark: str
    case: str
    baseline: str
    candidate: str
    ratio: dict[str, float]
    repetitions: int
    target: float | None
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    commit: str | None = field(default_factory=lambda: commit())
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None without a target."""
        return None if self.target is None else self.ratio["median"] <= self.target


def require_equal(baseline: Program, candidate: Program, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Raise AssertionError unless both programs return the same tensors: no speed is reported on wrong results."""
    expected, got = baseline(), candidate()
    if len(expected) == 0:
        raise AssertionError("the programs return nothing to compare")
    torch.testing.assert_close(list(got), list(expected), rtol=rtol, atol=atol)


def ratio_of(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "q1": q1, "q3": q3}


def _seconds(program: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    result = program()
    elapsed = clock() - start
    del result  # freed outside of the clock, for both alike
    return elapsed


def compare_times(
    baseline: Program,
    candidate: Program,
    *,
    repetitions: int,
    check: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time both programs in turns, the first of each round alternating, after a check that they agree.

    Args:
        baseline: what is compared with.
        candidate: what is compared.
        repetitions: number of rounds.
        check: whether both must return the same.
        clock: in seconds; the thread's own where it does all of the work, which others on the machine do not stretch.

    Returns:
        `ratio` (median and quartiles of the rounds' ratios) and `repetitions`.

    Raises:
        AssertionError: if the programs' results differ.
        ValueError: if there are fewer than 7 repetitions.
    """
    if repetitions < _MIN_REPETITIONS:
        raise ValueError(f"repetitions must be at least {_MIN_REPETITIONS}, got {repetitions}")
    if check:
        require_equal(baseline, candidate)
    ratios = []
    for program in (baseline, candidate):  # the caches' and the allocator's first touch
        program()
    gc.collect()
    gc.disable()
    try:
        for i in range(repetitions):
            order = (baseline, candidate) if i % 2 else (candidate, baseline)
            taken = {program: _seconds(program, clock) for program in order}
            ratios.append(taken[candidate] / taken[baseline])
            gc.collect(0)
    finally:
        gc.enable()
    return {"ratio": ratio_of(ratios), "repetitions": repetitions}


class _LiveBytes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in given and key not in self.alive:  # neither a view nor an operation in place
                    self.live += storage.nbytes()
                    self.alive[key] = StorageWeakRef(storage), storage.nbytes()
        if self.live > self.peak:  # `live` may count what is gone by now: look before believing in a new peak
            self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
            self.live = sum(size for _, size in self.alive.values())
            self.peak = max(self.peak, self.live)
        return out


def peak_bytes(program: Callable[[], object]) -> int:
    """Return the largest number of bytes, over all tensors that `program` makes, that were alive at once."""
    with _LiveBytes() as counted:
        result = program()
    del result
    return counted.peak


def compare_bytes(baseline: Program, candidate: Program) -> dict[str, Any]:
    """Compare the peaks of live bytes; deterministic, so that one repetition is enough."""
    require_equal(baseline, candidate)
    least, most = peak_bytes(candidate), peak_bytes(baseline)
    return {"ratio": ratio_of([least / most]), "repetitions": 1, "extra": {"bytes": [most, least]}}


@functools.cache
def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Say what the ratios were measured on, and how busy it was."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Say which versions ran, of what compiles and of what is compared with where that is installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "levada": levada.__version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.cache
def commit() -> str | None:
    """Return the commit, with `+` if the tree differs from it; None outside of a repository."""
    root = Path(__file__).resolve().parent
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    if asked.returncode:
        return None
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    return asked.stdout.strip() + ("+" if changed.stdout.strip() else "")


def print_row(row: Row) -> None:
    """Print one line of the table."""
    low, middle, high = row.ratio["q1"], row.ratio["median"], row.ratio["q3"]
    target = "" if row.target is None else f"{row.target:g} {'met' if row.met else 'MISSED'}"
    more = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.extra.items()
    )
    print(f"{row.case:<50} {middle:7.3f}  [{low:.3f}, {high:.3f}]  {target:<12} {more}", flush=True)


def main(name: str, cases: Callable[[bool], Iterable[Callable[[], Iterator[Row]]]]) -> int:
    """Run a benchmark's cases, print each row beside its target and append the rows to `results/<name>.jsonl`.

    `--quick` runs the small version of each case, for a smoke test; its rows are printed and not kept.

    Returns:
        0; a missed target is printed, not an error. Results that differ raise.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="small cases, nothing kept")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases in whose name or arguments this text is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    path = Path(__file__).resolve().parent / "results" / f"{name}.jsonl"
    print(f"{name}: candidate over baseline, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {_cpu()}")
    print(f"{'case':<50} {'median':>7}  {'quartiles':<14}  {'target':<12}")
    for case in cases(options.quick):
        if options.only not in f"{getattr(case, 'func', case).__name__} {getattr(case, 'args', '')}":
            continue
        for row in case():
            if options.quick:  # targets are for the sizes that they were set for
                print_row(replace(row, target=None))
            else:
                print_row(row)
                path.parent.mkdir(exist_ok=True)
                with path.open("a") as file:
                    file.write(json.dumps(asdict(row) | {"met": row.met}) + "\n")
    return 0
