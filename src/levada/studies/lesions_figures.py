"""The figures of R7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from levada.studies.lesions_claims import exact_shares, predicted_shares
from levada.study import Axis, Figure, Results, Series, measured_series
from levada.study.path_gradients import number_times_norm
from levada.theory import path_lengths

__all__ = ["figures"]

SMALLEST = 1e-6  # of what is drawn on a logarithmic axis
CHANCE = 90.0

Points = tuple[Sequence[float], Sequence[float]]


def figures(results: Results) -> list[Figure]:
    """Draw errors by deleted block, errors by number deleted and by disorder, and the gradient by path length."""
    single, several, paths = [], [], []
    depth = 2
    for config in results.configs:
        name = f"{config.get('kind', 'residual')}-{config['depth']}"
        if config["measures"] in ("single", "lesions"):
            single += measured_series(results, config, name, _by_block)
        if config["measures"] == "lesions":
            depth = config["depth"]
            several += measured_series(results, config, "deleted", _by_number)
            several += measured_series(results, config, "swapped", _by_swaps)
            paths += measured_series(results, config, "trained, number times norm of one", _number_times_norm)
            paths += measured_series(results, config, "trained, norm of the sum", _exact)
        elif config["measures"] == "untrained":
            paths += measured_series(results, config, "untrained, squared norm of the sum", _squared)
    blocks = depth // 2 - 1
    paths += [
        Series("all paths", "reference", *_drawn(path_lengths([1.0] * blocks).weights.tolist())),
        Series("untrained, predicted", "predicted", *_drawn(predicted_shares(blocks)),
               group="untrained, squared norm of the sum"),
    ]  # fmt: skip
    chance = Series("chance", "reference", [0.0, 1.0], [CHANCE] * 2)
    several.append(Series("chance", "reference", [1.0, 32.0], [CHANCE] * 2))
    return [
        Figure("deleted_block", "Test error without one block", "Every seed. The first block, at the left, is the one "
               "that the others need.", Axis("place of the deleted block, as a share of the depth"),
               Axis("test error, %"), (*single, chance)),
        Figure("many_lesions", "Test error by the number of blocks deleted or swapped", f"Residual network of {blocks} "
               "blocks, every seed; means over draws.", Axis("blocks deleted, or pairs swapped", "log"),
               Axis("test error, %"), tuple(several)),
        Figure("path_lengths", "The gradient by the number of branches passed", "Every seed. Number times norm is the "
               "paper's estimate, an upper bound; the norm of the sum is exact.", Axis("branches passed"),
               Axis("share", "log"), tuple(paths)),
    ]  # fmt: skip


def _by_block(values: Mapping[str, Any]) -> Points:
    count = len(values["single"])
    return [block / max(1, count - 1) for block in range(count)], [100 * share for share in values["single"]]


def _by_number(values: Mapping[str, Any]) -> Points:
    return values["deleted_number"], [100 * sum(draws) / len(draws) for draws in values["deleted"]]


def _by_swaps(values: Mapping[str, Any]) -> Points:
    means = [100 * sum(draws) / len(draws) for draws in values["swapped"]]
    return values["swaps"], means


def _drawn(shares: Sequence[float]) -> Points:
    lengths = [length for length, share in enumerate(shares) if share >= SMALLEST]
    return lengths, [shares[length] for length in lengths]


def _number_times_norm(values: Mapping[str, Any]) -> Points:
    return _drawn(number_times_norm(values["single_path"]))


def _exact(values: Mapping[str, Any]) -> Points:
    return _drawn(exact_shares(values["together"]))


def _squared(values: Mapping[str, Any]) -> Points:
    return _drawn(exact_shares(values["together_squared"]))
