"""Whether a network will train, said before training: the verdict's score and rivals' rules against what training does.

    python -m benchmarks.diagnosis.trainability run [--jobs N]     # trains the cells that results lack, then reports
    python -m benchmarks.diagnosis.trainability measure            # measures step 0 anew, keeps how training went

A cell of the grid counts as trainable under an optimizer if at least half of its seeds reach 50 % of right answers on
the training digits within 200 steps, at any of the optimizer's rates. Every score is taken at step 0 of the first seed.
Of a rival the better of both directions counts; constants of ours were chosen on the calibration half. That directions
are counted at all was decided on cells of both halves; the fresh families were drawn up after that, and nothing was
changed since.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.grid import CELLS, FRESH, network, reached, samples
from benchmarks.diagnosis.program import held_out
from benchmarks.diagnosis.rows import RESULTS, Row, complete, read
from benchmarks.diagnosis.score import Rate, roc_area
from levada._numbers import json_ready, restore_numbers
from levada.diagnose.check import examine
from levada.diagnose.trainable import trainable_depth

__all__ = ["OPTIMIZERS", "OURS", "areas", "curves", "halves", "main", "measured", "rivals", "row"]

NAME, TARGET = "trainability", 0.95
SEEDS, ROWS = (0, 1), 64
OPTIMIZERS = {"sgd": ("SGD", 0.01), "adam": ("Adam", 0.001)}


def row(name: str) -> Row:
    """Train a cell, and measure it at step 0.

    Args:
        name: of the cell.
    """
    start = time.perf_counter()
    trained = reached({**CELLS, **FRESH}[name], SEEDS)
    return {**trained, "seconds": round(time.perf_counter() - start, 2), **measured(name)}


def measured(name: str) -> Row:
    """Return what is known of a cell at step 0: our trainable depth under each optimizer, and the rivals' numbers.

    Args:
        name: of the cell.
    """
    net = network({**CELLS, **FRESH}[name], SEEDS[0])
    inputs, targets = (part[:ROWS] for part in samples())
    told: Row = {}
    for optimizer, (kind, rate) in OPTIMIZERS.items():
        start = time.perf_counter()
        report, trace = examine(net, (inputs, targets), optimizer=kind, lr=rate)
        found = trainable_depth(trace)
        told |= {
            f"{optimizer}_depth": {"unknown": found} if isinstance(found, str) else found.told(),
            f"{optimizer}_verdict": report.verdict,
            "check_seconds": round(time.perf_counter() - start, 3),
        }
    return json_ready({**told, **rivals(net, inputs, targets)})  # type: ignore[no-any-return]


def rivals(net: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return what published rules look at, on the gradient of the loss at step 0.

    Args:
        net: the network.
        inputs: a batch.
        targets: its labels.
    """
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(functional.cross_entropy(net(inputs), targets), parameters)
    matrices = [g.double() for g, p in zip(gradients, parameters, strict=True) if p.dim() > 1]
    norms = [float(g.norm()) for g in matrices]
    means = [float(g.abs().mean()) for g in matrices]
    every = torch.cat([g.flatten().double() for g in gradients])
    finite = all(bool(torch.isfinite(g).all()) for g in gradients)
    return {
        "mean_gradient": float(every.abs().mean()),
        "first_to_last": _ratio(norms[0], norms[-1]),
        "largest_to_smallest": _ratio(max(norms), min(norms)),
        "smallest_mean_of_layers": min(means),
        "largest_gradient": float(every.abs().max()),
        "finite": float(finite),
    }


# name -> (score of a row, the rule's own threshold on it: what fires is said not to train; None if there is none)
RIVALS: Mapping[str, tuple[Callable[[Row], float], Callable[[Row], bool] | None]] = {
    "mean |g| < 1e-4": (lambda r: r["mean_gradient"], lambda r: r["mean_gradient"] < 1e-4),
    "AUTOTRAINER: first over last layer's gradient": (
        lambda r: r["first_to_last"],
        lambda r: r["first_to_last"] < 1e-3 or r["largest_gradient"] > 70,
    ),
    "the same, as |log|": (lambda r: _log(r["first_to_last"]), None),
    "SageMaker Debugger: vanishing gradient (a layer's mean |g| < 1e-7)": (
        lambda r: r["smallest_mean_of_layers"],
        lambda r: r["smallest_mean_of_layers"] < 1e-7,
    ),
    "SageMaker Debugger: exploding tensor (not finite)": (lambda r: r["finite"], lambda r: not r["finite"]),
    "largest over smallest layer's gradient": (lambda r: r["largest_to_smallest"], None),
}


OURS = "levada: trainable depth / depth"


def areas(rows: Mapping[str, Row], names: Sequence[str], optimizer: str) -> dict[str, float]:
    """Return the area of each score on some cells, ours first; of a rival that of its better direction.

    Args:
        rows: of the results.
        names: of the cells.
        optimizer: "sgd" or "adam".
    """
    labels = [_trains(rows[name], optimizer) for name in names]
    found = {OURS: roc_area([_score(rows[name], optimizer) for name in names], labels)}
    for rival, (score, _) in RIVALS.items():
        area = roc_area([_known(score(rows[n])) for n in names], labels)
        found[rival] = max(area, 1 - area)
    return found


def curves(rows: Mapping[str, Row], names: Sequence[str], optimizer: str) -> dict[str, list[tuple[float, float]]]:
    """Return the ROC curve of each score on some cells: (share of those that fail, share of those that train) above it.

    Args:
        rows: of the results.
        names: of the cells.
        optimizer: "sgd" or "adam".
    """
    labels = [_trains(rows[name], optimizer) for name in names]
    found = {OURS: _curve([_score(rows[name], optimizer) for name in names], labels)}
    for rival, (score, _) in RIVALS.items():
        values = [_known(score(rows[n])) for n in names]
        turned = [-value for value in values]
        better = values if roc_area(values, labels) >= 0.5 else turned
        found[rival] = _curve(better, labels)
    return found


def _curve(scores: Sequence[float], labels: Sequence[bool]) -> list[tuple[float, float]]:
    yes, no = sum(labels), len(labels) - sum(labels)
    points = [(0.0, 0.0)]
    for limit in sorted(set(scores), reverse=True):
        above = [label for score, label in zip(scores, labels, strict=True) if score >= limit]
        points.append(((len(above) - sum(above)) / no, sum(above) / yes))
    return points


def report(rows: Mapping[str, Row], names: Sequence[str], title: str) -> float:
    """Print the areas of every score on some cells, and return the smaller of ours.

    Args:
        rows: of the results.
        names: of the cells.
        title: what they are.
    """
    least = math.inf
    for optimizer in OPTIMIZERS:
        labels = [_trains(rows[name], optimizer) for name in names]
        found = areas(rows, names, optimizer)
        least = min(least, found[OURS])
        print(f"\n{title}, {optimizer}: {len(names)} cells, {sum(labels)} train")
        print(f"  {found[OURS]:.3f}  {OURS}; at 1: {_told(rows, names, labels, optimizer)}")
        for name, (_, rule) in RIVALS.items():
            fires = [rule is not None and rule(rows[n]) for n in names]
            said = f"; fires on {_rates(fires, labels)}" if rule is not None else ""
            print(f"  {found[name]:.3f}  {name}{said}")
    return least


def _told(rows: Mapping[str, Row], names: Sequence[str], labels: Sequence[bool], optimizer: str) -> str:
    return f"said not to train: {_rates([_score(rows[n], optimizer) < 1 for n in names], labels)}"


def _rates(fires: Sequence[bool], labels: Sequence[bool]) -> str:
    """Return how many that do not train, and how many that train, a rule fires on."""
    bad = [fired for fired, label in zip(fires, labels, strict=True) if not label]
    good = [fired for fired, label in zip(fires, labels, strict=True) if label]
    return f"{Rate(sum(bad), len(bad))} of those that do not train, {Rate(sum(good), len(good))} of those that do"


def _trains(told: Row, optimizer: str) -> bool:
    """Whether at least half of the seeds reached the target at some rate."""
    seeds = [any(steps >= 0 for steps in of_seed) for of_seed in zip(*told[optimizer], strict=True)]
    return 2 * sum(seeds) >= len(seeds)


def _score(told: Row, optimizer: str) -> float:
    """Return trainable depth over depth; what is not known, a handful of blocks, lies on the border."""
    found = told[f"{optimizer}_depth"]
    return float(found["value"]) / found["blocks"] if "value" in found else 1.0


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.inf


def _log(ratio: float) -> float:
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _known(score: float) -> float:
    return score if score == score else math.inf


def halves() -> dict[str, tuple[dict[str, Row], list[str]]]:
    """Return what each set of cells is called -> all rows, and its cells."""
    rows = restore_numbers(read(NAME))
    sets = {
        "calibration half": [name for name in CELLS if not held_out(name)],
        "held-out half": [name for name in CELLS if held_out(name)],
        "families drawn after everything was frozen": list(FRESH),
    }
    return {title: (rows, names) for title, names in sets.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return 1 if an area on what was held out misses the target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis.trainability", description=__doc__)
    parser.add_argument("command", choices=("run", "measure"))
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    options = parser.parse_args(arguments)
    if options.command == "measure":
        torch.set_num_threads(1)
        known = [{**old, **measured(name)} for name, old in read(NAME).items()]
        (RESULTS / f"{NAME}.jsonl").write_text("".join(json.dumps(told) + "\n" for told in known))
    complete(NAME, [*CELLS, *FRESH], row, jobs=options.jobs)
    least = [report(rows, names, title) for title, (rows, names) in halves().items()][1:]
    print(f"\n{'met' if min(least) >= TARGET else 'missed'}: the target of {TARGET} on what was held out")
    return int(min(least) < TARGET)


if __name__ == "__main__":
    sys.exit(main())
