"""The figures of R12."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from levada.studies.depth_separation_claims import BY_DEPTH, DEEP, SHALLOW
from levada.study import Axis, Figure, Results, Series, measured_series
from levada.theory import crossing_bound, most_pieces

__all__ = ["figures"]


def figures(results: Results) -> list[Figure]:
    """Draw pieces by depth, errors on the sawtooth with their bounds, and the errors on shells."""
    return [_pieces(results), _errors(results), _shells(results)]


def _of(results: Results, measures: str) -> list[dict[str, Any]]:
    return [config for config in results.configs if config["measures"] == measures]


def _pieces(results: Results) -> Figure:
    series: list[Series] = []
    built, untrained = _of(results, "construction"), _of(results, "untrained")
    for config in built:
        point = functools.partial(_point, name="pieces", at=config["folds"])
        series += measured_series(results, config, "constructed, 2 units a layer", point)
    for config in untrained:
        point = functools.partial(_point, name="pieces", at=config["depth"])
        name = f"{config['width']} units a layer" if config["layered"] == BY_DEPTH else "equal units"
        series += measured_series(results, config, f"untrained, {name}", point)
    for config in _of(results, "sawtooth"):
        if config["network"] in DEEP:
            point = functools.partial(_point, name="pieces", at=config["folds"])
            series += measured_series(results, config, f"trained, {config['widths'][0]} units a layer", point)
    folds = sorted(config["folds"] for config in built)
    by_depth = [config for config in untrained if config["layered"] == BY_DEPTH]
    depths = sorted(config["depth"] for config in by_depth)
    series.append(Series("2^depth", "predicted", folds, [2.0**k for k in folds], "constructed, 2 units a layer"))
    series.append(Series("most that 2 units a layer can have", "bound", folds, [3.0**k for k in folds]))
    if by_depth:
        width = by_depth[0]["width"]
        series.append(Series("half of the units", "reference", depths, [depth * width / 2 for depth in depths]))
    return Figure(
        "pieces", "Linear pieces by depth", "One point per seed. A construction doubles them with each layer; random "
        "weights, and training from them, give about as many as there are units.", Axis("hidden layers"),
        Axis("linear pieces", "log"), tuple(series),
    )  # fmt: skip


def _errors(results: Results) -> Figure:
    series: list[Series] = []
    configs = _of(results, "sawtooth")
    names = list(dict.fromkeys(config["network"] for config in configs))
    for config in configs:
        beside = 0.15 * (names.index(config["network"]) - (len(names) - 1) / 2)
        point = functools.partial(_point, name="error", at=config["folds"] + beside)
        series += measured_series(results, config, config["network"], point)
    for network in SHALLOW[:2]:
        own = sorted((c for c in configs if c["network"] == network), key=lambda config: config["folds"])
        least = [crossing_bound(most_pieces(c["widths"]), 2 ** c["folds"] + 1) for c in own]
        series.append(Series(f"{network}, bound", "bound", [c["folds"] for c in own], least, network))
    for config in _of(results, "construction"):
        point = functools.partial(_point, name="error", at=config["folds"])
        series += measured_series(results, config, "constructed", point)
    return Figure(
        "sawtooth", "Errors on a sawtooth of 2^k pieces", "After training, one point per seed, at each k the networks "
        "beside each other in the order of the legend; a coin errs in half of "
        "the answers. Dotted: what the number of units leaves a shallow network at least.", Axis("k"),
        Axis("share of wrong answers"), tuple(series),
    )  # fmt: skip


def _shells(results: Results) -> Figure:
    series: list[Series] = []
    for config in _of(results, "radial"):
        point = functools.partial(_point, name="error", at=config["dim"])
        series += measured_series(results, config, config["network"], point)
    return Figure(
        "shells", "On which shell? Two layers and three", "Test error, one point per seed.", Axis("dimensions"),
        Axis("share of wrong answers"), tuple(series),
    )  # fmt: skip


def _point(values: Mapping[str, Any], name: str, at: float) -> tuple[list[float], list[float]]:
    return [float(at)], [values[name]]
