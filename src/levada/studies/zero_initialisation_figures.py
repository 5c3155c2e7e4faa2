"""What R8 draws."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, log
from typing import Any

from levada.study import Axis, Figure, Results, Series, measured_series

__all__ = ["figures"]

MOST = 100  # nats: a residual network without normalisation starts at 1e15, and would make lines of all others one


def figures(results: Results) -> list[Figure]:
    """Draw the race at the common rate and at each one's own, and the gradient of blocks that start at zero."""
    races: dict[str, list[Series]] = {"released": [], "own": []}
    gradients: list[Series] = []
    for config in results.configs:
        if config["measures"] == "race":
            drawn = [s for s in measured_series(results, config, config["arm"], _within(0, MOST, "curve")) if s.x]
            races[config["race"]] += drawn
        elif config["measures"] == "zero" and config["optimizer"] == "Adam":
            name = f"{config['start']}, {config['activation']}"
            gradients += [s for s in measured_series(results, config, name, _within(0, inf, "gradient")) if s.x]
    told = (
        f"Every seed; a point is the mean of a fortieth of the steps. Chance is ln 10 = 2.30. Losses above {MOST} nats "
        "are not drawn, such as those of a residual network without normalisation from He's start."
    )
    return [
        *(
            Figure(f"race_{name}", f"Deep networks in training, {title}", told, Axis("step"),
                   Axis("cross-entropy, nats", "log"), (*drawn, *_chance(drawn)))
            for (name, drawn), title in zip(
                races.items(), ("the released race", "each at its own rate"), strict=True
            )
        ),
        Figure("gradient_from_zero", "Blocks that start at zero", "Largest gradient of any weight of a block, Adam; "
               "every seed. Of all-zero blocks with ReLU or tanh it is exactly 0 at every step, and so without a line "
               "here.", Axis("step"), Axis("largest gradient", "log"), tuple(gradients)),
    ]  # fmt: skip


def _within(low: float, high: float, key: str) -> Any:
    """Give the points of a curve between two bounds, both left out."""

    def points(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        kept = [(x, y) for x, y in zip(values[key]["steps"], values[key]["values"], strict=True) if low < y < high]
        return [x for x, _ in kept], [y for _, y in kept]

    return points


def _chance(series: list[Series]) -> list[Series]:
    ends = [max(own.x) for own in series]
    return [Series("chance", "reference", [0, max(ends)], [log(10), log(10)])] if ends else []
