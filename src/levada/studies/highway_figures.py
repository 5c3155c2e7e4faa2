"""The figures of R5."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from levada.studies.highway_claims import DEPTHS, PROFILE_DEPTH
from levada.study import Axis, Figure, Results, Series, measured_series

__all__ = ["figures"]

LEAST, MOST = 1e-12, 1000.0  # nats: what is drawn


def figures(results: Results) -> list[Figure]:
    """Draw the final loss by depth, the losses on the way at 10 and 100 layers, and the change by layer."""
    final: list[Series] = []
    curves: list[Series] = []
    changes: list[Series] = []
    for config in sorted(results.configs, key=lambda c: (c["kind"], c["depth"])):
        kind, depth = config["kind"], config["depth"]

        def point(values: Mapping[str, Any], depth: int = depth) -> tuple[list[float], list[float]]:
            return [float(depth)], [_drawn(values["loss"])]

        final += measured_series(results, config, kind, point)
        if depth in (min(DEPTHS), max(DEPTHS)):
            curves += measured_series(results, config, f"{kind}-{depth}", _curve)
        if (kind, depth) == ("highway", PROFILE_DEPTH):
            for name, group in (("changes", "trained"), ("changes_before", "before training")):
                changes += measured_series(results, config, group, functools.partial(_profile, name=name))
    chance = Series("chance, ln 10", "reference", list(DEPTHS), [math.log(10)] * len(DEPTHS))
    end = max((series.x[-1] for series in curves), default=0.0)
    if curves:
        curves.append(Series("chance, ln 10", "reference", [0.0, end], [math.log(10)] * 2))
    return [
        Figure("loss_by_depth", "Training cross-entropy by depth", "One point per seed, after training, each kind and "
               "depth with the settings that were chosen for it; who diverged stands at 1,000.",
               Axis("layers", "log"),
               Axis("cross-entropy on the training digits, nats", "log"), (*final, chance)),
        Figure("curves", "Training at 10 and at 100 layers", "Every seed, on the batches; a point is the mean of a "
               "fortieth of the steps. Who diverged stands at 1,000.", Axis("step"),
               Axis("cross-entropy, nats", "log"), tuple(curves)),
        Figure("changes", f"Change of the stream by layer, highway-{PROFILE_DEPTH}", "Norm of what a layer adds "
               "relative to the norm of the stream, over 500 digits, every seed.", Axis("layer"),
               Axis("|x' - x| / |x|", "log"), tuple(changes)),
    ]  # fmt: skip


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["curve"]["steps"], [_drawn(loss) for loss in values["curve"]["loss"]]


def _profile(values: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """The layers that change the stream: of a network that diverged, none."""
    kept = [(float(layer), change) for layer, change in enumerate(values[name], start=2) if change > 0]
    return [layer for layer, _ in kept], [change for _, change in kept]


def _drawn(loss: float) -> float:
    return min(max(loss, LEAST), MOST)
