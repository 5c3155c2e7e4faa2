"""A training step of a transformer with each connection over the same with residual connections: time and memory.

Both networks share the weights of their branches, stem and head, so that both fit; a step is forward and backward in
bfloat16 with a loss of every token, without the optimizer, whose part does not depend on the connection.

Memory is what the device says; on a CPU, what tensors are counted to take.

python -m benchmarks.training_step [--quick] [--all] [--device cuda] [--width 4096] [--layers 24] [--tokens 4096]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import levada
from benchmarks.costs import OPTIONS, listed
from benchmarks.measure import Row, peak_bytes, print_row, ratio_of
from levada.networks import Network, transformer

_VOCABULARY = 1024
_CANDIDATES: dict[str, tuple[Callable[..., levada.Connection], dict[str, object], float | None]] = {
    "IdentityHyperConnection, n = 4": (levada.IdentityHyperConnection, {"streams": 4}, None),
    "ManifoldHyperConnection, n = 4": (levada.ManifoldHyperConnection, {"streams": 4}, 1.06),
    "HyperConnection, n = 4": (levada.HyperConnection, {"streams": 4}, None),
    "AttentionResidual, blocks of 6 layers": (levada.AttentionResidual, {"block_size": 6}, 1.04),
}


def candidates(every: bool) -> dict[str, tuple[Callable[..., levada.Connection], dict[str, object], float | None]]:
    """Return those that have targets, or all connections: but those whose branches have another width."""
    left_out = "Residual", "Dense", "Reversible"
    others = {name: (c, OPTIONS.get(name, {}), None) for name, c in listed().items() if name not in left_out}
    return _CANDIDATES | (others if every else {})


def build(connection: Callable[..., levada.Connection], options: argparse.Namespace, **given: object) -> Network:
    """Make a network on the device, of the type that it computes in."""
    with torch.device(options.device):
        net = transformer(
            2 * options.layers,
            options.width,
            vocabulary=_VOCABULARY,
            heads=max(options.width // 128, 1),
            norm=functools.partial(nn.RMSNorm, eps=1e-6),
            connection=connection,
            **given,
        )
    return net.to(options.dtype)


def sharing(net: Network, plain: Network) -> Network:
    """Give a network the branches, the stem and the head of the other."""
    net.stem, net.head = plain.stem, plain.head
    for layer, other in zip(net.stack.layers, plain.stack.layers, strict=True):
        layer.branch = other.branch
    return net


def step_of(net: Network, tokens: torch.Tensor) -> Callable[[], float]:
    """Return one step, which returns its loss and leaves no gradients behind."""

    def step() -> float:
        scores = net(tokens)
        loss = nn.functional.cross_entropy(scores.flatten(0, -2).float(), tokens.flatten())
        loss.backward()
        net.zero_grad(set_to_none=True)
        return float(loss.detach())  # which waits for the device

    return step


def seconds(step: Callable[[], float]) -> float:
    """Return the time of a step: of one thread what it had of the processor, which others do not stretch."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.thread_time if alone else time.perf_counter
    start = clock()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak(step: Callable[[], float], device: str) -> int:
    """Return the most bytes that a step has taken beside what was there before."""
    if device != "cuda":
        return peak_bytes(step)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def rows(options: argparse.Namespace, repetitions: int) -> Iterator[Row]:
    """Yield time, and on a GPU memory, of each candidate, with and without recomputation, over residual connections."""
    torch.manual_seed(0)
    plain = build(levada.Residual, options)
    tokens = torch.randint(_VOCABULARY, (1, options.tokens), device=options.device)
    base = step_of(plain, tokens)
    base()
    size = f"{options.layers} layers of {options.width}, {options.tokens} tokens"
    for name, (connection, given, target) in candidates(options.all).items():
        for checkpoint in (False, True):
            net = sharing(build(connection, options, **given, checkpoint=checkpoint), plain)
            step = step_of(net, tokens)
            label = f"{size}: {name}" + (", recomputed" if checkpoint else "")
            row = functools.partial(Row, benchmark="training_step", baseline="Residual", candidate=name)
            extra = {"dtype": str(options.dtype), "layers": options.layers, "width": options.width}
            try:
                loss = step()
                ratios = []
                for i in range(repetitions):
                    order = (base, step) if i % 2 else (step, base)
                    taken = {program: seconds(program) for program in order}
                    ratios.append(taken[step] / taken[base])
            except torch.OutOfMemoryError:
                print(f"{label}: does not fit into the memory")
                continue
            yield row(
                case=f"time, {label}",
                ratio=ratio_of(ratios),
                repetitions=repetitions,
                target=target if options.device == "cuda" and not checkpoint else None,
                extra={
                    **extra,
                    "loss": round(loss, 4),
                    "milliseconds": round(1e3 * statistics.median([taken[base]]), 1),
                },
            )
            least, most = peak(base, options.device), peak(step, options.device)
            yield row(
                case=f"memory, {label}",
                ratio=ratio_of([most / least]),
                repetitions=1,
                target=1.5 if checkpoint and options.device == "cuda" else None,
                extra={**extra, "mebibytes": [least >> 20, most >> 20]},
            )
            del net, step


def main() -> int:
    """Print each row beside its target and append the rows to `results/training_step.jsonl`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, nothing kept")
    parser.add_argument("--all", action="store_true", help="every connection, not only those with targets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=24, help="an attention and a feed-forward each")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "training_step.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.width, options.layers, options.tokens = 64, 2, 64
    options.dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"training_step: candidate over residual connections, {device}, torch {torch.__version__}")
    for row in rows(options, options.repetitions):
        row.machine["device"] = device
        print_row(row)
        if not options.quick:
            with options.output.open("a") as file:
                file.write(json.dumps(asdict(row) | {"met": row.met}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
