"""The figures of R7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from levada.studies.lesions_claims import exact_shares, predicted_shares
from levada.study import Axis, Figure, Results, Series, measured_series
from levada.study.path_gradients import number_times_norm
from levada.theory import path_lengths

__all__ = ["figures"]

CHANCE = 90.0

Points = tuple[Sequence[float], Sequence[float]]


def figures(results: Results) -> list[Figure]:
    """Draw errors by deleted block, by number deleted and by disorder, and the gradient by path length."""
    single, deleted, swapped, paths = [], [], [], []
    depth = 2
    for config in results.configs:
        name = f"{config.get('kind', 'residual')}-{config['depth']}"
        if config["measures"] in ("single", "lesions"):
            single += measured_series(results, config, name, _by_block)
        if config["measures"] == "lesions":
            depth = config["depth"]
            deleted += measured_series(results, config, "deleted", _by_number)
            swapped += measured_series(results, config, "swapped", _by_disorder)
            paths += measured_series(results, config, "trained, number times norm of one", _number_times_norm)
            paths += measured_series(results, config, "trained, share of the gradient", _additive)
        elif config["measures"] == "untrained":
            paths += measured_series(results, config, "untrained, squared norm of the sum", _squared)
    blocks = depth // 2 - 1
    paths += [
        Series("all paths", "reference", *_by_length(path_lengths([1.0] * blocks).weights.tolist())),
        Series("untrained, predicted", "predicted", *_by_length(predicted_shares(blocks)),
               group="untrained, squared norm of the sum"),
    ]  # fmt: skip
    error, draws = Axis("test error, %"), f"Residual network of {blocks} blocks, every seed; means over draws."
    return [
        Figure("deleted_block", "Test error without one block", "Every seed. The first block, at the left, is the one "
               "that the others need.", Axis("place of the deleted block, as a share of the depth"), error,
               (*single, _chance(single))),
        Figure("deleted", "Test error by the number of blocks deleted", draws, Axis("blocks deleted"), error,
               (*deleted, _chance(deleted))),
        Figure("swapped", "Test error by the disorder of the blocks", draws,
               Axis("share of pairs of blocks in the wrong order"), error, (*swapped, _chance(swapped))),
        Figure("path_lengths", "The gradient by the number of branches passed", "Every seed. Number times norm is the "
               "paper's estimate, an upper bound; shares of the gradient are exact and sum to 1.",
               Axis("branches passed"), Axis("share"), tuple(paths)),
    ]  # fmt: skip


def _chance(series: Sequence[Series]) -> Series:
    """A line at chance, as long as what is drawn."""
    return Series("chance", "reference", [0.0, max((max(own.x) for own in series), default=1.0)], [CHANCE] * 2)


def _by_block(values: Mapping[str, Any]) -> Points:
    count = len(values["single"])
    return [block / max(1, count - 1) for block in range(count)], [100 * share for share in values["single"]]


def _by_number(values: Mapping[str, Any]) -> Points:
    return values["deleted_number"], [100 * sum(draws) / len(draws) for draws in values["deleted"]]


def _by_disorder(values: Mapping[str, Any]) -> Points:
    means = [sum(draws) / len(draws) for draws in values["disorder"]]
    points = sorted(zip(means, values["swapped"], strict=True))
    return [mean for mean, _ in points], [100 * sum(draws) / len(draws) for _, draws in points]


def _by_length(shares: Sequence[float]) -> Points:
    return list(range(len(shares))), shares


def _number_times_norm(values: Mapping[str, Any]) -> Points:
    return _by_length(number_times_norm(values["single_path"]))


def _additive(values: Mapping[str, Any]) -> Points:
    return _by_length(values["additive"])


def _squared(values: Mapping[str, Any]) -> Points:
    return _by_length(exact_shares(values["together_squared"]))
