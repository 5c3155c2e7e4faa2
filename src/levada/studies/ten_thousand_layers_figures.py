"""What R9 draws."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log
from typing import Any

from levada.studies.ten_thousand_layers_claims import CHANCE
from levada.study import Axis, Figure, Results, Series, measured_series
from levada.theory import gaussian_drift, orthogonal_tanh

__all__ = ["figures"]


def figures(results: Results) -> list[Figure]:
    """Draw the size of state and gradient by layer before training, with closed forms, and the losses by step."""
    forward: list[Series] = []
    backward: list[Series] = []
    curves: list[Series] = []
    for config in results.configs:
        if config["measures"] == "start":
            name = config["network"]
            forward += measured_series(results, config, name, _signal)
            backward += measured_series(results, config, name, _gradient)
            forward += _predicted(config)
            backward += [_reversed(own, config["depth"]) for own in _predicted(config)]
        elif config["measures"] == "training":
            layers = "frozen layers" if config["frozen"] else "layers"
            curves += measured_series(results, config, f"{config['network']}, {config['depth']:,} {layers}", _curve)
    ends = [max(own.x) for own in curves]
    chance = [Series("chance", "reference", [0, max(ends)], [CHANCE, CHANCE])] if ends else []
    told = ("Every seed, before training, in float64. Dashed: closed forms; band: two standard deviations between "
            "Gaussian networks of this width. A line ends where the square is below what float64 holds.")  # fmt: skip
    return [
        Figure("signal_by_layer", "Size of the state by layer", told, Axis("layer"),
               Axis("root mean square relative to the first", "log"), tuple(forward)),
        Figure("gradient_by_layer", "Size of the gradient by layer", told, Axis("layer"),
               Axis("root mean square relative to the last", "log"), tuple(backward)),
        Figure("losses", "A thousand and ten thousand layers in training", "Every seed; a point is the mean of a "
               "fortieth of the steps. Chance is ln 10 = 2.30.", Axis("step"), Axis("cross-entropy, nats", "log"),
               (*curves, *chance)),
    ]  # fmt: skip


def _signal(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return _drawn(values["boundaries"], [own / values["first"][0] for own in values["forward"]])


def _gradient(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return _drawn(values["boundaries"], [own / values["last"][1] for own in values["gradient"]])


def _drawn(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b > 0]
    return [a for a, _ in kept], [b for _, b in kept]


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["curve"]["steps"], values["curve"]["values"]


def _predicted(config: Mapping[str, Any]) -> list[Series]:
    """Closed forms of the signal; the gradient's are these from the other end, but for a share of 1/n."""
    depth, dim, name = config["depth"], config["dim"], config["network"]
    layers = [*range(1, depth + 1, max(1, depth // 50))]
    if name == "orthogonal":
        y = [orthogonal_tanh(layer, dim, 1 / (2 * depth)).signal for layer in layers]
        return [Series(f"{name}, closed form", "predicted", layers, y, name)]
    if name == "Gaussian":
        drifts = [gaussian_drift(layer, dim) for layer in layers]
        low, mid, high = ([exp(max(d.mean + k * d.deviation, log(1e-300))) for d in drifts] for k in (-2, 0, 2))
        return [Series(f"{name}, closed form", "predicted", layers, mid, name),
                Series(f"{name}, two standard deviations", "band", layers, mid, name, low, high)]  # fmt: skip
    return []


def _reversed(series: Series, depth: int) -> Series:
    x = [depth - layer for layer in series.x]
    low, high = (None if edge is None else [*edge][::-1] for edge in (series.low, series.high))
    return Series(series.label, series.style, x[::-1], [*series.y][::-1], series.group, low, high)
