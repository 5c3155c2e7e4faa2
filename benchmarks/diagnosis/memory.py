"""Suite `memory`: the horizon that is measured before training, against the longest lag that training then learns.

A symbol stands at the start of a sequence, random symbols of another kind follow, and at the end the first one is asked
for. Each network is measured as it is initialised, and then trained anew for every lag: it has learned a lag if it
recalls nine in ten of fresh sequences at any of its tests; chance is one in four. Lags grow until one is not learned.

    python -m benchmarks.diagnosis.memory run [--jobs N]     # appends to results/diagnosis/memory.jsonl; resumes
    python -m benchmarks.diagnosis.memory report
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Generator, Tensor, nn

from benchmarks.measure import commit, machine, versions
from levada.initialise import chrono, orthogonal_recurrence
from levada.probe import memory_curves

__all__ = ["CONFIGURATIONS", "longest", "main", "recall", "summary"]

RESULTS = Path(__file__).parents[1] / "results" / "diagnosis" / "memory.jsonl"
SYMBOLS, DISTRACTORS, HIDDEN, ROWS = 4, 4, 32, 32
LAGS = (5, 10, 20, 40, 80, 160)
STEPS, TEST_EVERY, LR, LEARNED = 300, 25, 5e-3, 0.9
SEEDS = (0, 1, 2)


class Recall(nn.Module):
    """A recurrent layer, and a head that reads its last output."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(SYMBOLS + DISTRACTORS + 1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@dataclass(frozen=True)
class Configuration:
    """A network, and what is done to it before it is measured."""

    kind: type[nn.RNNBase]
    change: Callable[[Recall], object]

    def build(self, seed: int) -> Recall:
        torch.manual_seed(seed)
        model = Recall(self.kind)
        self.change(model)
        return model


def _scaled(gain: float) -> Callable[[Recall], object]:
    """Multiply what torch draws, whose gain is 3^-1/2."""
    return lambda model: model.rnn.weight_hh_l0.data.mul_(gain)


def _biased(value: float) -> Callable[[Recall], object]:
    """Set the gate that carries the memory: the second block of an LSTM and of a GRU."""

    def change(model: Recall) -> None:
        for name, bias in ((n, b) for n, b in model.rnn.named_parameters() if n.startswith("bias")):
            bias.data[HIDDEN : 2 * HIDDEN] = value if name.startswith("bias_ih") else 0.0

    return change


CONFIGURATIONS: dict[str, Configuration] = {
    "rnn default": Configuration(nn.RNN, lambda model: None),
    "rnn x 0.5": Configuration(nn.RNN, _scaled(0.5)),
    "rnn x 1.4": Configuration(nn.RNN, _scaled(1.4)),
    "rnn orthogonal": Configuration(nn.RNN, orthogonal_recurrence),
    "rnn orthogonal x 0.9": Configuration(nn.RNN, lambda model: orthogonal_recurrence(model, gain=0.9)),
    "lstm default": Configuration(nn.LSTM, lambda model: None),
    **{f"lstm bias {b}": Configuration(nn.LSTM, _biased(float(b))) for b in (-2, 1, 2, 3, 5)},
    "lstm chrono 160": Configuration(nn.LSTM, lambda model: chrono(model, 160.0)),
    "gru default": Configuration(nn.GRU, lambda model: None),
    **{f"gru bias {b}": Configuration(nn.GRU, _biased(float(b))) for b in (-2, 2, 4)},
    "gru chrono 160": Configuration(nn.GRU, lambda model: chrono(model, 160.0)),
}


def recall(lag: int, rows: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return sequences of `lag + 1` steps, and the symbol that stood at their start.

    >>> x, targets = recall(5, 2, torch.Generator().manual_seed(0))
    >>> x.shape, bool((x[:, 0, :4].argmax(-1) == targets).all()), x[:, -1, -1].tolist()
    (torch.Size([2, 6, 9]), True, [1.0, 1.0])
    """
    targets = torch.randint(SYMBOLS, (rows,), generator=generator)
    between = torch.randint(DISTRACTORS, (rows, lag - 1), generator=generator) + SYMBOLS
    asked = torch.full((rows, 1), SYMBOLS + DISTRACTORS)
    tokens = torch.cat([targets[:, None], between, asked], 1)
    return nn.functional.one_hot(tokens, SYMBOLS + DISTRACTORS + 1).float(), targets


def learn(model: Recall, lag: int, seed: int) -> tuple[float, int]:
    """Train in place; return the best accuracy of all tests, and the steps made until it was enough."""
    generator = Generator().manual_seed(1000 * seed + lag)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    test, best = recall(lag, 256, generator), 0.0
    for step in range(1, STEPS + 1):
        x, targets = recall(lag, ROWS, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % TEST_EVERY == 0:
            with torch.no_grad():
                best = max(best, float((model(test[0]).argmax(-1) == test[1]).float().mean()))
            if best > LEARNED:
                return best, step
    return best, STEPS


def run_one(job: tuple[str, int]) -> dict[str, Any]:
    """Measure one network, train it for each lag, and return the row."""
    name, seed = job
    torch.set_num_threads(1)
    configuration, start = CONFIGURATIONS[name], time.perf_counter()
    model = configuration.build(seed)
    x, _ = recall(max(LAGS), ROWS, Generator().manual_seed(seed))
    (memory,) = memory_curves(model, lambda: model(x), seed=seed)
    lags: dict[str, dict[str, float]] = {}
    for lag in LAGS:
        accuracy, steps = learn(configuration.build(seed), lag, seed)
        lags[str(lag)] = {"accuracy": accuracy, "steps": steps}
        if accuracy <= LEARNED:
            break
    horizon = memory.horizon
    return {
        "suite": "memory",
        "configuration": name,
        "seed": seed,
        "settings": _settings(),
        "horizon": {"value": horizon.value, "low": horizon.low, "high": horizon.high},
        "horizon_of_gates": memory.horizon_predicted,
        "slope": memory.slope.value,
        "lags": lags,
        "longest": longest(lags),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def _settings() -> dict[str, Any]:
    return {"hidden": HIDDEN, "rows": ROWS, "steps": STEPS, "lr": LR, "learned": LEARNED, "lags": list(LAGS)}


def longest(lags: dict[str, dict[str, float]]) -> int:
    """Return the longest lag that was learned; 0 if none was.

    >>> longest({"5": {"accuracy": 1.0}, "10": {"accuracy": 0.95}, "20": {"accuracy": 0.3}})
    10
    """
    return max((int(lag) for lag, told in lags.items() if told["accuracy"] > LEARNED), default=0)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rank correlation of predicted horizon and longest lag, and their ratio where the lags bracket it.

    Beside it the correlation of the horizon that gates, or the size of recurrent weights, imply without a Jacobian.

    Over networks, one for each configuration and seed, and over the medians of configurations. What learns the longest
    lag of all, or not even the shortest, has no ratio. A horizon beyond the longest lag counts as that.
    """
    predicted = [row["horizon"]["value"] for row in rows]
    learned = [row["longest"] for row in rows]
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    medians = [
        [sorted(v for v, row in zip(values, rows, strict=True) if row["configuration"] == name) for name in names]
        for values in (predicted, learned)
    ]
    middle = [[values[len(values) // 2] for values in side] for side in medians]
    inside = [(p, n) for p, n in zip(predicted, learned, strict=True) if LAGS[0] <= n < LAGS[-1]]
    ratios = sorted(n / min(p, LAGS[-1]) for p, n in inside)
    ends = [(p, n) for p, n in zip(predicted, learned, strict=True) if n in (0, LAGS[-1])]
    right = sum(p >= LAGS[-1] / 2 if n else p < LAGS[0] * 2 for p, n in ends)
    return {
        "networks": len(rows),
        "spearman": float(stats.spearmanr(predicted, learned).statistic),
        "spearman_of_gates": float(stats.spearmanr([row["horizon_of_gates"] for row in rows], learned).statistic),
        "spearman_of_configurations": float(stats.spearmanr(*middle).statistic),
        "ratio_median": ratios[len(ratios) // 2] if ratios else math.nan,
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]] if ratios else [],
        "within_factor_2": sum(0.5 <= r <= 2 for r in ratios),
        "within_factor_4": sum(0.25 <= r <= 4 for r in ratios),
        "with_ratio": len(ratios),
        "all_or_nothing": len(ends),
        "all_or_nothing_right": right,
    }


def read() -> list[dict[str, Any]]:
    """Return the rows of the present settings."""
    if not RESULTS.exists():
        return []
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return [row for row in rows if row["settings"] == json.loads(json.dumps(_settings()))]


def _run(jobs: int) -> None:
    done = {(row["configuration"], row["seed"]) for row in read()}
    left = [(name, seed) for seed in SEEDS for name in CONFIGURATIONS if (name, seed) not in done]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool, RESULTS.open("a") as file:
        for row in pool.imap_unordered(run_one, left):
            file.write(json.dumps({**row, "horizon": {k: min(v, 1e9) for k, v in row["horizon"].items()}}) + "\n")
            file.flush()
            print(
                f"{row['configuration']:22} seed {row['seed']}  {row['horizon']['value']:8.1f} predicted  "
                f"{row['longest']:4d} learned  {row['seconds']:.1f} s",
                flush=True,
            )


def _report() -> None:
    rows = read()
    for name in CONFIGURATIONS:
        own = [row for row in rows if row["configuration"] == name]
        if own:
            predicted = sorted(row["horizon"]["value"] for row in own)
            print(f"| `{name}` | {predicted[len(own) // 2]:.0f} | {', '.join(str(row['longest']) for row in own)} |")
    print(json.dumps(summary(rows), indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suite, or report on what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--jobs", type=int, default=1)
    told = parser.parse_args(arguments)
    if told.command == "run":
        _run(told.jobs)
    _report()


if __name__ == "__main__":
    main()
