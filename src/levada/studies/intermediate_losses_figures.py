"""What R16 draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levada.study import Axis, Figure, Results, Series, measured_series

__all__ = ["figures"]


def figures(results: Results) -> list[Figure]:
    """Draw the gradient by layer, the accuracy of the heads by depth, the losses, and the tagger by arm."""
    reach, heads, curves, tagging = [], [], [], []
    for config in results.configs:
        if config["measures"] == "tagging":
            tagging += measured_series(results, config, _site(config), _tags(config))
            continue
        name = f"{config['network']}, {config['arm']}"
        curves += measured_series(results, config, name, _curve)
        if config["arm"] != "supervised":
            continue
        for label, key in (("without", "gradient"), ("with", "supervised_gradient")):
            reach += measured_series(
                results, config, f"{config['network']}, {label} intermediate losses", _by_layer(key)
            )
        heads += measured_series(results, config, config["network"], _heads(config["depth"]))
    return [
        Figure("reach", "Gradient by layer before training", "Every seed; norm of the gradient of a layer's weights. "
               "Layer 0 is the map in; the last is the output.", Axis("layer"), Axis("gradient norm", "log"),
               tuple(reach)),
        Figure("heads", "Accuracy by depth", "After training with intermediate losses: each head, and at the right end "
               "the output; every seed.", Axis("layer"), Axis("test accuracy, %"), (*heads, *_chance(heads))),
        Figure("losses", "The output's loss", "Every seed; a point is the mean of a twentieth of the steps. Chance is "
               "ln 10 = 2.30.", Axis("step"), Axis("cross-entropy, nats"), tuple(curves)),
        Figure("tagging", "Where parts of speech are learned", "Accuracy of dependency relations on test sentences; a "
               "point is a seed.", Axis("layer of the head for parts of speech (0: none)"),
               Axis("accuracy, %"), tuple(tagging)),
    ]  # fmt: skip


def _by_layer(key: str) -> Any:
    return lambda values: (list(range(len(values[key]))), values[key])


def _heads(depth: int) -> Any:
    def points(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        return [*values["heads"], depth], [100 * share for share in (*values["head_accuracy"], values["accuracy"])]

    return points


def _chance(series: list[Series]) -> list[Series]:
    ends = [max(own.x) for own in series]
    return [Series("chance", "reference", [0, max(ends)], [10, 10])] if ends else []


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["curve"]["steps"], values["curve"]["loss"]


def _site(config: Mapping[str, Any]) -> str:
    return "none" if config["site"] is None else f"layer {config['site'] + 1}"


def _tags(config: Mapping[str, Any]) -> Any:
    place = 0 if config["site"] is None else config["site"] + 1
    return lambda values: ([place], [100 * sum(values["correct"]) / sum(values["tokens"])])
