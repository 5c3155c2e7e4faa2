"""The figures of R6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levada.studies.shortcut_ablation_claims import FAIL, KINDS
from levada.study import Axis, Figure, Results, Series, measured_series
from levada.theory import batch_norm_gradient_gain

__all__ = ["figures"]

DRAWN = ("identity", "half of both", "exclusive gate, bias -6", "no shortcut")


def figures(results: Results) -> list[Figure]:
    """Draw test errors against the paper's, training errors on the way, and gradients by block."""
    table: list[Series] = []
    curves: list[Series] = []
    profiles: list[Series] = []
    for config in results.configs:
        kind, blocks = config["kind"], config["blocks"]

        def point(values: Mapping[str, Any], paper: float = KINDS[kind].paper) -> tuple[list[float], list[float]]:
            return [paper], [100 * values["test_error"]]

        table += measured_series(results, config, kind, point)
        curves += measured_series(results, config, kind, _curve)
        if kind in DRAWN:
            profiles += measured_series(results, config, kind, lambda values: _profile(values["gradient"]))
        if kind in DRAWN[:2]:
            around = f"{kind}, through shortcuts alone"
            profiles += measured_series(results, config, around, lambda values: _profile(values["shortcut_gradient"]))
        if kind == "half of both":
            boundaries = list(range(blocks + 1))
            gains = [KINDS[kind].shortcut.gain(blocks - boundary) or 0.0 for boundary in boundaries]
            profiles.append(Series("product of the shortcuts' factors, 1/2", "predicted", boundaries, gains,
                                   f"{kind}, through shortcuts alone"))  # fmt: skip
        if kind == "no shortcut":
            rates = [batch_norm_gradient_gain("relu") ** (2 * (blocks - boundary)) for boundary in range(blocks + 1)]
            profiles.append(Series("no shortcut, predicted", "predicted", list(range(blocks + 1)), rates, kind))
    if table:
        top = max(y for series in table for y in series.y)
        table.append(Series("paper: fail", "reference", [FAIL, FAIL], [0.0, top]))
    return [
        Figure("table", "Test errors and the paper's", "One point per seed and kind of shortcut; the paper's “fail” "
               f"stands at {FAIL:g} %.", Axis("paper: ResNet-110 on CIFAR-10, test error, %"),
               Axis("here: 54 blocks on MNIST-1D, test error, %"), tuple(table)),
        Figure("curves", "Training error by kind of shortcut", "Every seed, on the batches; a point is the mean of a "
               "fiftieth of the steps.", Axis("step"), Axis("training error, %"), tuple(curves)),
        Figure("gradient_by_block", "Gradient by block before training", "Every seed, float64: the whole gradient, and "
               "what of it comes through the shortcuts alone.", Axis("block"),
               Axis("gradient norm relative to the last block's", "log"), tuple(profiles)),
    ]  # fmt: skip


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["curves"]["steps"], [100 * share for share in values["curves"]["error"]]


def _profile(norms: list[float]) -> tuple[list[float], list[float]]:
    """The boundaries where there is a gradient: none can be drawn on a logarithmic axis."""
    kept = [(float(boundary), norm) for boundary, norm in enumerate(norms) if norm > 0]
    return [boundary for boundary, _ in kept], [norm for _, norm in kept]
