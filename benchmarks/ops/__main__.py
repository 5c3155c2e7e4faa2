"""python -m benchmarks.ops [--quick] [--device cuda] [--dtype bfloat16] [NAME ...]."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.measure import print_row
from benchmarks.ops import rows

_NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
_SIZES = {
    "cuda": [(4096, 4, 2560), (4096, 4, 4096), (2048, 4, 7168), (16384, 4, 1280), (4096, 2, 4096), (2048, 8, 4096)],
    "cpu": [(4096, 4, 512), (256, 4, 128)],
}


def main() -> int:
    """Check and time the operators named, or all, print a row for each and append it to `results/ops.jsonl`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one small size, nothing kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=list(_SIZES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1)")
    parser.add_argument("--most", type=int, help="number of sizes (default: all)")
    parser.add_argument("--without", action="append", default=[], metavar="PROGRAM", help="leave a program out")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "ops.jsonl")
    options = parser.parse_args()
    if unknown := set(options.names) - set(_NAMES):
        parser.error(f"no operator {', '.join(sorted(unknown))}; there are {', '.join(_NAMES)}")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"ops: time over that of a copy of the least bytes, {name}, {dtype}, torch {torch.__version__}")
    sizes = [(64, 4, 96)] if options.quick else _SIZES[device.type][: options.most]
    for module in options.names or _NAMES:
        for case in importlib.import_module(f"benchmarks.ops.{module}").cases(sizes):
            torch.compiler.reset()
            torch.manual_seed(0)  # else what is drawn, and how far its sums cancel, depends on the cases before
            kept = {name: program for name, program in case.programs.items() if name not in options.without}
            case = replace(case, programs=kept)
            for row in rows(case, device, dtype, 7 if options.quick else 11):
                row = replace(row, machine={**row.machine, "device": name})
                print_row(replace(row, target=None) if options.quick else row)
                if not options.quick:
                    with options.output.open("a") as file:
                        file.write(json.dumps(asdict(row) | {"met": row.met}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
