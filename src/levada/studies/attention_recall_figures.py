"""The figures of R15."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levada.studies.attention_recall_claims import ATTENTION, name_of
from levada.study import Axis, Figure, Results, Series, measured_series
from levada.study.recall import recall_chance

__all__ = ["REACH", "figures"]

REACH = 8  # places on either side of the right one


def figures(results: Results) -> list[Figure]:
    """Draw accuracy by number of pairs, attention around the right place, and induction while it is learned."""
    recall = [config for config in results.configs if config["measures"] == "recall"]
    pairs = sorted({number for config in recall for number in config["pairs"]})
    by_pairs, around = [], []
    for config in recall:

        def shares(values: Mapping[str, Any], pairs: list[int] = config["pairs"]) -> tuple[list[int], list[float]]:
            return pairs, [100 * share for share in values["accuracy"]]

        by_pairs += measured_series(results, config, name_of(config), shares)
        if config["network"] != ATTENTION["network"]:
            continue
        for place, number in enumerate(config["pairs"]):

            def near(values: Mapping[str, Any], place: int = place) -> tuple[list[int], list[float]]:
                return list(range(-REACH, REACH + 1)), values["lookup"][place]["around"]

            around += measured_series(results, config, f"{number} pairs", near)
    by_pairs.append(Series("chance", "reference", pairs, [100 * recall_chance(number) for number in pairs]))
    return [
        Figure("accuracy_by_pairs", "Recall by number of pairs", "Every seed, after training on so many pairs, on new "
               "sequences. Chance knows which values occur.", Axis("pairs", "log"), Axis("right answers, %"),
               tuple(by_pairs)),
        Figure("attention_around", "Attention around the right place", "Mean over questions of the second attention's "
               "weights, every seed. Place 0 holds the answer, place -1 its key.",
               Axis("place, from the one that answers"), Axis("attention"), tuple(around)),
        Figure("induction", "Induction while it is learned", "Attention alone, every seed; a point is the mean of a "
               "fiftieth of the steps, on sequences not seen before.", Axis("step"), Axis("right answers, %"),
               tuple(_induction(results))),
    ]  # fmt: skip


def _induction(results: Results) -> list[Series]:
    series = []
    for config in results.configs:
        if config["measures"] != "induction":
            continue

        def curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
            return values["curve"]["steps"], [100 * share for share in values["curve"]["accuracy"]]

        series += measured_series(results, config, name_of(config), curve)
        level = [100 * recall_chance(config["tokens"] - 1)] * 2
        if all(s.label != "chance" for s in series):
            series.append(Series("chance", "reference", [1, config["steps"]], level))
    return series
