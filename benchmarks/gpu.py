"""All that a GPU is wanted for, in one program: it builds the kernels, checks them, and times what is right.

    python -m benchmarks.gpu [--output FOLDER] [--most N] [STEP ...]

Without a GPU, `--device cpu --quick` goes through the same steps, so that nothing is tried for the first time on a
machine that is lent for minutes. First it says the device, and which versions of what compiles and of what is compared
with are there. Steps, in their order:

- registers: each kernel is compiled for this device, with its registers and spills;
- tests: those that need a device (on a CPU: the kernels interpreted, and compiled for GPUs that are not there);
- ops: each operation beside its rivals, over a copy of the least bytes (`benchmarks.ops`);
- training_step: a step of a transformer with each connection that has a target, time and memory;
- figure: the roofline of the rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch

from benchmarks.measure import PACKAGES, commit, versions

__all__ = ["STEPS", "commands"]

_ROOT: Final = Path(__file__).parents[1]
_NEEDED: Final = ("registers", "tests")  # what fails here is not timed
Command = list[str]


def _module(name: str, *words: str) -> Command:
    return [sys.executable, "-m", name, *words]


def _registers(options: argparse.Namespace) -> Command:
    names = ["sinkhorn"] if options.quick else []
    major, minor = torch.cuda.get_device_capability() if options.device == "cuda" else (9, 0)
    rows = str(options.output / "registers.jsonl")
    return _module("benchmarks.registers", *names, "--capability", str(10 * major + minor), "--output", rows)


def _tests(options: argparse.Namespace) -> Command:
    without_device = "tests/test_roofline.py" if options.quick else "tests/ops/test_triton.py"
    where = ["tests/gpu", "tests/ops/test_scan.py"] if options.device == "cuda" else [without_device]
    return _module("pytest", *where, "-q", "--maxfail=20", "-p", "no:cacheprovider")


def _ops(options: argparse.Namespace) -> Command:
    words = ["--device", options.device, "--output", str(options.output / "ops.jsonl")]
    if options.quick:
        return _module("benchmarks.ops", *words, "--quick", "streams")
    return _module("benchmarks.ops", *words, *(["--most", str(options.most)] if options.most else []))


def _training_step(options: argparse.Namespace) -> Command:
    words = ["--device", options.device, "--output", str(options.output / "training_step.jsonl")]
    return _module("benchmarks.training_step", *words, *(["--quick"] if options.quick else []))


def _figure(options: argparse.Namespace) -> Command | None:
    rows = options.output / "ops.jsonl"
    if options.device != "cuda" or not rows.exists():  # a CPU has no place in it
        return None
    return _module("docs.roofline", "--rows", str(rows), "--image", str(options.output / "roofline.svg"))


STEPS: Final[dict[str, Callable[[argparse.Namespace], Command | None]]] = {
    "registers": _registers,
    "tests": _tests,
    "ops": _ops,
    "training_step": _training_step,
    "figure": _figure,
}


def commands(options: argparse.Namespace) -> Iterator[tuple[str, Command]]:
    """Yield each step's name and command, in order.

    Args:
        options: of the command line.
    """
    for name, command_of in STEPS.items():
        if name in (options.steps or STEPS):
            command = command_of(options)
            if command is not None:
                yield name, command


def _describe(device: str) -> str:
    """Say what it runs on, and which rivals are there."""
    lines = [f"levada at {commit()}"]
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        lines.append(
            f"{torch.cuda.get_device_name()}, compute capability {capability}, CUDA {torch.version.cuda}, "
            f"{free >> 30} of {total >> 30} GiB free"
        )
    found = versions()
    lines.append(", ".join(f"{name} {number}" for name, number in found.items()))
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        lines.append(f"not installed, and left out of what is timed: {', '.join(missing)}")
    return "\n".join(lines)


def main() -> int:
    """Build, check and time everything on a GPU; rows, registers and the figure go to a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=main.__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="little of each step, to see that it runs")
    parser.add_argument("--most", type=int, help="number of sizes of the operations (default: all)")
    parser.add_argument("--output", type=Path, default=Path("build/gpu"), help="folder for rows and figure")
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; `--device cpu --quick` goes through the same steps without one")
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    print(_describe(options.device), flush=True)
    failed = []
    for name, command in commands(options):
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=_ROOT, check=False).returncode
        print(f"== {name}: {'done' if not code else f'exit code {code}'}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(name)
            if name in _NEEDED:
                print("nothing is timed: what is compiled or computed here must be right first", flush=True)
                break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
