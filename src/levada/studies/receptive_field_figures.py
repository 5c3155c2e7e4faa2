"""The figures of R14."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import log
from typing import Any

from levada.studies.receptive_field_claims import CHANCE
from levada.study import Axis, Figure, Results, Series, measured_series
from levada.study.sequences import SYMBOLS
from levada.theory import field_deviation

__all__ = ["figures"]


def figures(results: Results) -> list[Figure]:
    """Draw accuracy by lag, the loss of copying, and the widths of exact and effective fields by depth."""
    lags: list[Series] = []
    losses: list[Series] = []
    widths: list[Series] = []
    blind = 0.0
    for config in results.configs:
        if config.get("arm") == "field":
            lags += measured_series(results, config, config["kind"], functools.partial(_share_at, lag=config["lag"]))
        elif config["measures"] == "copy":
            losses += measured_series(results, config, config["network"], _curve)
            blind = log(SYMBOLS) * 10 / (config["delay"] + 20)
        elif config["measures"] == "field":
            at = functools.partial(_width_at, depth=config["depth"])
            widths += measured_series(results, config, config["activation"], at)
    if lags:
        lags += [Series("chance", "reference", [0, 32], [CHANCE] * 2), _end(16)]
    if losses:
        losses.append(Series("symbols guessed", "reference", [0.0, max(losses[0].x)], [blind] * 2))
    depths = sorted({config["depth"] for config in results.configs if config["measures"] == "field"})
    for label, style, width in (("independent weights", "predicted", lambda d: field_deviation([3] * d)),
                                ("exact field", "bound", lambda d: 2.0 * d + 1)):  # fmt: skip
        widths.append(Series(label, style, depths, [width(depth) for depth in depths]))  # type: ignore[arg-type]
    return [
        Figure("cliff", "Accuracy by lag", "Two networks with a field of 16 steps, one point per seed and lag.",
               Axis("lag, steps"), Axis("accuracy"), tuple(lags)),
        Figure("copy", "Copy memory", "Loss on the batches, every seed; a point is the mean of a thirtieth of the "
               "steps. Dotted: the loss of who knows when the symbols are asked, but not which.",
               Axis("step"), Axis("loss, nats", "log"), tuple(losses)),
        Figure("effective_field", "Exact and effective field by depth", "Plain networks of kernel 3 before training; "
               "standard deviation of the gradient's energy over lags, one point per seed.",
               Axis("layers", "log"), Axis("steps", "log"), tuple(widths)),
    ]  # fmt: skip


def _end(field: int) -> Series:
    return Series("end of the field", "reference", [field - 0.5, field - 0.5], [0.0, 1.0])


def _share_at(values: Mapping[str, Any], lag: int) -> tuple[list[float], list[float]]:
    return [float(lag)], [values["right"] / values["asked"]]


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["curve"]["steps"], values["curve"]["loss"]


def _width_at(values: Mapping[str, Any], depth: int) -> tuple[list[float], list[float]]:
    return [float(depth)], [values["deviation"][0]]
