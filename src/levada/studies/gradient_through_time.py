"""R13: how fast gradients fade through time, what gates and skips make of it, and the lags that are learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from levada.cells import GRU, LSTM, RNN, Cell, Dilated, Leaky, ResidualInTime
from levada.probe import memory_curves
from levada.studies.gradient_through_time_claims import BEGIN, END, LAGS, LEARNED, claims, figures
from levada.study import Cell as Job
from levada.study import Settings, Study
from levada.study.lags import Reader, ReaderRecipe, Task, adding, first_symbol, temporal_order, train_reader
from levada.theory import carried_gradient

__all__ = ["CELLS", "STUDY"]

GAIN = 3**-0.5  # of recurrent weights as torch draws them
RATE, DILATION = 0.1, 8


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _plain(dim_in: int, dim: int) -> RNN:
    return RNN(dim_in, dim)


# What makes a cell, and its carry and gain at the start, as in `levada.theory.carried_gradient`.
CELLS: dict[str, tuple[Callable[[int, int], Cell], tuple[float, float]]] = {
    "tanh": (_plain, (0.0, GAIN)),
    "tanh, orthogonal": (lambda dim_in, dim: RNN(dim_in, dim, start="orthogonal"), (0.0, 1.0)),
    "leaky": (lambda dim_in, dim: Leaky(_plain(dim_in, dim), RATE), (1 - RATE, RATE * GAIN)),
    "residual in time": (lambda dim_in, dim: ResidualInTime(_plain(dim_in, dim)), (1.0, GAIN)),
    "dilated": (lambda dim_in, dim: Dilated(_plain(dim_in, dim), DILATION), (0.0, GAIN)),
    "LSTM, forget bias 0": (lambda dim_in, dim: LSTM(dim_in, dim, forget_bias=0.0), (0.5, GAIN / 4)),
    "LSTM, forget bias 1": (lambda dim_in, dim: LSTM(dim_in, dim, forget_bias=1.0), (_sigmoid(1.0), GAIN / 4)),
    "LSTM, forget bias 3": (lambda dim_in, dim: LSTM(dim_in, dim, forget_bias=3.0), (_sigmoid(3.0), GAIN / 4)),
    "GRU": (GRU, (0.5, GAIN / 4)),
}  # fmt: skip


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Job]:
    """Give the training runs first, one for each cell, then the slopes, which take seconds."""
    learns = {key: settings[key] for key in ("dim", "steps", "lr", "longest_lag")} | {"version": 1}
    tasks = {key: settings[key] for key in ("dim", "task_steps", "task_lr", "length")} | {"version": 1}
    jobs = [Job({"measures": "lags", "cell": name, **learns}, seeds) for name in CELLS]
    jobs += [
        Job({"measures": task, "cell": name, **tasks}, seeds)
        for task in ("adding", "temporal order")
        for name in settings["task_cells"]
    ]
    return jobs + [Job({"measures": "slope", "cell": n, "dim": settings["wide"], "version": 1}, seeds) for n in CELLS]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Measure the gradient through time at the start, the lags that are learned, or one of the long tasks."""
    known: Mapping[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {"slope": _slope, "lags": _lags}
    return [known.get(config["measures"], _task)(config, seed) for seed in seeds]


def _reader(config: Mapping[str, Any], task: Task, seed: int) -> Reader:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reader(CELLS[config["cell"]][0](task.dim_in, config["dim"]), task.dim_out)


def _curve(reader: nn.Module, task: Task, seed: int) -> Any:
    x, _ = task.draw(32, torch.Generator().manual_seed(seed))
    reader.double()
    (memory,) = memory_curves(reader, lambda: reader(x.double()), seed=seed)
    return memory


def _slope(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Measure the curve of an untrained cell, in float64, and predict it from carry and gain alone."""
    task = first_symbol(END + BEGIN)
    memory = _curve(_reader(config, task, seed), task, seed)
    per_step = DILATION if config["cell"] == "dilated" else 1
    predicted = [carried_gradient(*CELLS[config["cell"]][1], k // per_step) for k in range(END + 1)]
    return {"curve": memory.curve[: END + 1].tolist(), "predicted": predicted, "gate": CELLS[config["cell"]][1][0]}


def _lags(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Measure the horizon before training, then train anew for each lag, until one is not learned."""
    lags = [lag for lag in LAGS if lag <= config["longest_lag"]]
    task = first_symbol(lags[-1])
    memory = _curve(_reader(config, task, seed), task, seed)
    recipe, longest, best = ReaderRecipe(config["steps"], config["lr"], enough=LEARNED), 0, {}
    for lag in lags:
        task = first_symbol(lag)
        best[str(lag)] = train_reader(_reader(config, task, seed), task, recipe, 1000 * seed + lag)["best"]
        if best[str(lag)] < LEARNED:
            break
        longest = lag
    return {"horizon": memory.horizon.value, "longest": longest, "accuracy": best}


def _task(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    task = (adding if config["measures"] == "adding" else temporal_order)(config["length"])
    recipe = ReaderRecipe(config["task_steps"], config["task_lr"], test_every=max(config["task_steps"] // 20, 1))
    return train_reader(_reader(config, task, seed), task, recipe, seed)


STUDY = Study(
    name="R13", slug="gradient_through_time", title="Gradients through time",
    question="How far back does a recurrent network learn, what decides it, and does a skip in time help?",
    sources=("Hochreiter and Schmidhuber 1997", "Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063",
             "Chang et al. 2017, arXiv 1710.02224"),
    settings={"seeds": 5, "dim": 32, "wide": 128, "steps": 300, "lr": 3e-3, "longest_lag": 160, "length": 40,
              "task_steps": 1500, "task_lr": 3e-3,
              "task_cells": ("tanh", "leaky", "dilated", "LSTM, forget bias 1")},
    scales={"smoke": {"seeds": 2, "wide": 32, "steps": 10, "longest_lag": 10, "length": 10, "task_steps": 4,
                      "task_cells": ("tanh", "leaky")},
            "full": {"seeds": 10, "steps": 2000, "dim": 64, "length": 100, "task_steps": 10_000,
                     "task_cells": tuple(CELLS)}},
    configurations=configurations, run=run, claims=claims, figures=figures,
)  # fmt: skip
