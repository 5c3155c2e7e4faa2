"""What R3 claims, and what it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, median
from typing import Any

from levada.study import Axis, Claim, Figure, Results, Series, Settings, Statistic
from levada.study.statistics import sign_test, spearman, student_interval
from levada.theory import depth_scales

__all__ = ["BIAS_VARIANCE", "claims", "figures", "frontiers"]

BIAS_VARIANCE, CRITICAL = 0.05, 1.76
LOW, HIGH = 2.0, 12.0  # bounds on the frontier, in depth scales


@cache
def depth_scale(variance: float) -> float:
    """Return xi_c of tanh in layers."""
    return depth_scales("tanh", variance, BIAS_VARIANCE).correlation


def _variances(results: Results) -> list[float]:
    return sorted({config["weight_variance"] for config in results.configs})


def _depths(results: Results) -> list[int]:
    return sorted({config["depth"] for config in results.configs})


def frontiers(results: Results, variance: float) -> dict[int, float]:
    """Return the depth up to which each seed's networks all trained; half of the least depth where not even it did.

    Args:
        results: what was measured; seeds of which a depth is missing are left out.
        variance: of the weights.
    """
    found, depths = dict[int, float](), _depths(results)
    trained = {depth: dict(results.where(weight_variance=variance, depth=depth)) for depth in depths}
    for seed in results.seeds:
        if all(seed in trained[depth] for depth in depths):
            found[seed] = depths[0] / 2
            for depth in depths:
                if not trained[depth][seed]["trained"]:
                    break
                found[seed] = float(depth)
    return found


def _travels(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide by the rank correlation; the interval is that of the seeds, each with its own frontiers."""
    variances = _variances(results)
    scales, columns = [depth_scale(v) for v in variances], [frontiers(results, v) for v in variances]
    numbers: dict[str, Any] = {f"weight variance {v:g}: frontier": list(c.values())
                               for v, c in zip(variances, columns, strict=True)}  # fmt: skip
    means = [math.exp(fmean(map(math.log, column.values()))) for column in columns]
    found = _correlation(scales, means)
    single = [_correlation(scales, [column[seed] for column in columns]) for seed in results.seeds]
    numbers["Spearman's rank correlation"] = found
    numbers["Spearman's rank correlation, each seed"] = single
    return found >= 0.9, numbers, student_interval(single, "the seeds' rank correlations")


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; 0 where all depths are the same, which ranks nothing."""
    return spearman(one, other) if len(set(other)) > 1 else 0.0


def _sixfold(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide by the median of each column; the interval is that of the seeds' mean multiples."""
    numbers, met = dict[str, Any](), True
    logs = {seed: list[float]() for seed in results.seeds}
    for variance in _variances(results):
        if variance == CRITICAL:
            continue
        ratios = {seed: depth / depth_scale(variance) for seed, depth in frontiers(results, variance).items()}
        numbers[f"weight variance {variance:g}: frontier / xi_c"] = list(ratios.values())
        met = met and LOW <= median(ratios.values()) <= HIGH
        for seed, ratio in ratios.items():
            logs[seed].append(math.log(ratio))
    means = [math.exp(fmean(values)) for values in logs.values()]
    numbers["geometric mean over the columns, each seed"] = means
    return met, numbers, student_interval(means, "the seeds' mean multiples")


def _critical(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide at the deepest; the statistic counts seeds in which the critical network trained there."""
    deepest, numbers, far = _depths(results)[-1], dict[str, Any](), 0
    for variance in _variances(results):
        column = results.column("trained", weight_variance=variance, depth=deepest)
        numbers[f"weight variance {variance:g}: trained at {deepest} layers"] = sum(column)
        far += sum(column) if 6 * depth_scale(variance) < deepest / 2 else 0
    near = results.column("trained", weight_variance=CRITICAL, depth=deepest)
    return all(near) and not far, numbers, sign_test(sum(near), len(near))


def _twenty(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide beyond 20 layers; the statistic counts seeds in which no network trained there."""
    none, numbers = [True] * len(results.seeds), dict[str, Any]()
    for depth in _depths(results):
        if depth <= 20:
            continue
        count = 0
        for variance in _variances(results):
            column = results.column("trained", weight_variance=variance, depth=depth)
            none = [before and not now for before, now in zip(none, column, strict=True)]
            count += any(column)
        numbers[f"initialisations that trained at {depth} layers, of {len(_variances(results))}"] = count
    numbers["6 xi_c of weight variance 1"] = 6 * depth_scale(1.0)
    return all(none), numbers, sign_test(sum(none), len(none))


SOURCE = "Schoenholz et al. 2017, arXiv 1611.01232, abstract"


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; all of them rest on the whole grid."""
    deepest = max(settings["depths"])
    return [
        Claim(
            "trained where information travels", "“Random networks may be trained precisely when information can "
            "travel through them.”", "Spearman's rank correlation of at least 0.9 over the initialisations between "
            "xi_c, computed, and the depth up to which networks train (geometric mean over the seeds)", SOURCE,
            _travels, paper_value="the frontier follows about 6 xi_c",
        ),
        Claim(
            "about six depth scales", "Networks train to a depth of about 6 xi_c.", f"frontier over xi_c between "
            f"{LOW:g} and {HIGH:g}, median over the seeds, for every initialisation but the critical one",
            "Schoenholz et al. 2017, arXiv 1611.01232", _sixfold, paper_value="6",
        ),
        Claim(
            "deep only near criticality", "“Arbitrarily deep networks may be trained only sufficiently close to "
            "criticality.”", f"at {deepest} layers the critical initialisation (weight variance {CRITICAL}) trains in "
            f"every seed, and none with 6 xi_c below {deepest / 2:g} in any", SOURCE, _critical,
        ),
        Claim(
            "twenty layers", "Without skip connections, networks of more than about 20 layers could not be trained.",
            "no initialisation trains beyond 20 layers in any seed", "common in tutorials", _twenty,
            paper_value="100 layers, and a run of 900 (highway networks, arXiv 1505.00387)",
            correction="How deep depends on the initialisation: 6 xi_c is 22 layers for tanh at weight variance 1, 5 "
            "at PyTorch's default, and without bound at criticality.",
        ),
    ]  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the phase diagram, and how many steps each depth took."""
    variances, depths = _variances(results), _depths(results)
    frontier = [
        Series(f"deepest that trained, seed {seed}", "measured", variances,
               [frontiers(results, v)[seed] for v in variances], group="deepest that trained", seed=seed)
        for seed in results.seeds
        if all(seed in frontiers(results, v) for v in variances)
    ]  # fmt: skip
    grid = [variances[0] + i * (variances[-1] - variances[0]) / 50 for i in range(51)]
    for multiple, style in ((2.0, "bound"), (6.0, "predicted"), (12.0, "bound")):
        curve = [(v, multiple * depth_scale(v)) for v in grid]
        shown = [(v, depth) for v, depth in curve if depth <= 4 * depths[-1]]
        shown = sorted([*shown, (CRITICAL, math.inf)])  # there the line breaks
        frontier.append(Series(f"{multiple:g} xi_c", style, *_split(shown)))  # type: ignore[arg-type]
    steps = []
    for variance in variances:
        rows = {depth: dict(results.where(weight_variance=variance, depth=depth)) for depth in depths}
        for seed in results.seeds:
            points = [(d, rows[d][seed]["steps"]) for d in depths if seed in rows[d] and rows[d][seed]["trained"]]
            if points:
                name = f"weight variance {variance:g}"
                steps.append(Series(f"{name}, seed {seed}", "measured", *_split(points), group=name, seed=seed))
    return [
        Figure("phase_diagram", "How deep plain tanh networks train", "Every seed: the deepest network that answered "
               "half of its training images right, all shallower ones too. Lines: multiples of the depth scale, from "
               f"the initialisation alone; xi_c is infinite near {CRITICAL}. The deepest asked is {depths[-1]}.",
               Axis("weight variance times fan-in"), Axis("hidden layers", "log"), tuple(frontier)),
        Figure("steps_by_depth", "Steps until half of the answers are right", "Every seed; a line ends where the next "
               "depth did not train.", Axis("hidden layers", "log"), Axis("steps"), tuple(steps)),
    ]  # fmt: skip


def _split(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
