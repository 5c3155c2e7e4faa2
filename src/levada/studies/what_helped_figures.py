"""The figures of R11."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from levada.studies.what_helped_claims import FACTORS, effects
from levada.study import Axis, Figure, Results, Series, measured_series

__all__ = ["figures"]


def figures(results: Results) -> list[Figure]:
    """Draw the accuracy of the sixteen cells, the effects, and what Adam's epsilon changes."""
    return [_cells(results), _effects(results), *_epsilons(results)]


def _cells(results: Results) -> Figure:
    """Cells in the order of their number of helpful levels, coloured by activation and normalisation."""
    factorial = [config for config in results.configs if config["measures"] == "factorial"]
    helpful = {index: sum(c[field] == level for field, level in FACTORS.values()) for index, c in enumerate(factorial)}
    series: list[Series] = []
    for index, config in enumerate(factorial):
        norm = "batch norm" if config["norm"] else "no norm"
        group = f"{config['activation']}, {norm}"
        # Beside each other: initialisation and optimizer.
        place = helpful[index] + 0.12 * (2 * (config["initialisation"] == "scaled") + (config["optimizer"] == "Adam"))
        series += measured_series(results, config, group, functools.partial(_accuracy, at=place))
    series.append(Series("chance", "reference", [0.0, 4.5], [0.1] * 2))
    return Figure(
        "cells", "Accuracy by how many of the four helped", "One point per seed and cell; at a number of helpful "
        "levels, from left to right: neither scaled weights nor Adam, Adam, scaled weights, both.",
        Axis("helpful levels: scaled weights, batch norm, ReLU, Adam"), Axis("training accuracy"), tuple(series),
    )  # fmt: skip


def _effects(results: Results) -> Figure:
    own = Results([c for c in results.cells if c.config["measures"] == "factorial"], results.values, results.failures)
    complete = bool(own.cells) and not own.missing()
    found = effects(own) if complete else {}
    series = [
        Series(f"{name}, seed {seed}", "measured", [float(place)], [value], group=name, seed=seed)
        for place, name in enumerate(FACTORS, 1)
        for seed, value in zip(own.seeds, found.get(name, []), strict=False)
    ]
    series.append(Series("no effect", "reference", [0.5, len(FACTORS) + 0.5], [0.0] * 2))
    return Figure(
        "effects", "Main effects", "Mean gain of training accuracy over the eight settings of the other three, one "
        f"point per seed; from left to right: {', '.join(FACTORS)}.", Axis("factor"), Axis("main effect, points"),
        tuple(series),
    )  # fmt: skip


def _epsilons(results: Results) -> list[Figure]:
    moves: list[Series] = []
    shares: list[Series] = []
    tried = [config for config in results.configs if config["measures"] == "epsilon" and not config["residual"]]
    for config in tried:
        eps = float(config["eps"])
        for layer, name in ((0, "first layer"), (-1, "last layer")):
            moves += measured_series(results, config, name, functools.partial(_move, at=eps, layer=layer))
        shares += measured_series(results, config, "plain, Adam", functools.partial(_accuracy, at=eps))
    ends = [float(config["eps"]) for config in tried]
    gradients = [profile[0] for config in tried[:1] for profile in results.column("gradient", **config)]
    if gradients:
        moves.append(Series("first layer's gradient", "reference", [fmean(gradients)] * 2, [1e-8, 10.0]))
    for config in results.configs:
        if config["measures"] == "epsilon" and config["residual"]:
            group = f"residual, {config['optimizer']}"
            shares += measured_series(results, config, group, functools.partial(_accuracy, at=1e-8))
    shares.append(Series("chance", "reference", [min(ends), max(ends)], [0.1] * 2))
    return [
        Figure("epsilon", "What Adam's epsilon lets move", "Change of a layer's weights by training, relative to their "
               "norm, one point per seed. Dotted: the first layer's gradient before training.",
               Axis("Adam's epsilon", "log"), Axis("relative change", "log"), tuple(moves)),
        Figure("epsilon_accuracy", "What it teaches", "One point per seed: steps of the right size do not train, "
               "residual connections do. Gradient descent has no epsilon and stands at 1e-8.",
               Axis("Adam's epsilon", "log"), Axis("training accuracy"), tuple(shares)),
    ]  # fmt: skip


def _accuracy(values: Mapping[str, Any], at: float) -> tuple[list[float], list[float]]:
    return [at], [values["accuracy"]]


def _move(values: Mapping[str, Any], at: float, layer: int) -> tuple[list[float], list[float]]:
    return [at], [values["moved"][layer]]
