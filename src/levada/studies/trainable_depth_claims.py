"""What R3 claims, and what it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean, median
from typing import Any

from levada.study import Axis, Claim, Figure, Results, Series, Settings, Statistic, Undecided
from levada.study.statistics import spearman, student_interval, wilson_interval
from levada.theory import depth_scales

__all__ = ["BIAS_VARIANCE", "asked", "claims", "depth_scale", "figures", "frontiers"]

BIAS_VARIANCE, CRITICAL = 0.05, 1.76
LOW, HIGH = 2.0, 12.0  # bounds on the frontier, in depth scales
LEAST = 0.9  # of the rank correlation


@cache
def depth_scale(variance: float) -> float:
    """Return xi_c of tanh in layers."""
    return depth_scales("tanh", variance, BIAS_VARIANCE).correlation


def asked(variance: float, depths: Sequence[int]) -> list[int]:
    """Return the depths that are asked of an initialisation: all up to the first beyond 12 xi_c.

    Args:
        variance: of the weights.
        depths: of the study.
    """
    ends = [depth for depth in depths if depth > HIGH * depth_scale(variance)]
    return sorted(depth for depth in depths if depth <= min(ends, default=max(depths)))


def _variances(results: Results) -> list[float]:
    return sorted({config["weight_variance"] for config in results.configs})


def _depths(results: Results, variance: float | None = None) -> list[int]:
    """Return the depths that are asked, of all initialisations or of one."""
    return sorted({c["depth"] for c in results.configs if variance is None or c["weight_variance"] == variance})


def frontiers(results: Results, variance: float) -> dict[int, float]:
    """Return the depth up to which each seed's networks all trained; 0 where not even the least did.

    Args:
        results: what was measured; seeds of which a depth is missing are left out.
        variance: of the weights.
    """
    found, depths = dict[int, float](), _depths(results, variance)
    trained = {depth: dict(results.where(weight_variance=variance, depth=depth)) for depth in depths}
    for seed in results.seeds:
        if all(seed in trained[depth] for depth in depths):
            found[seed] = 0.0
            for depth in depths:
                if not trained[depth][seed]["trained"]:
                    break
                found[seed] = float(depth)
    return found


def _travels(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    """Decide by the rank correlation; the interval is that of the seeds, each with its own frontiers.

    Who trains at the deepest asked might train at any depth: the correlation is taken with both.
    """
    variances = _variances(results)
    scales, columns = [depth_scale(v) for v in variances], [frontiers(results, v) for v in variances]
    numbers: dict[str, Any] = {f"weight variance {v:g}: frontier": list(c.values())
                               for v, c in zip(variances, columns, strict=True)}  # fmt: skip
    least = [median(column.values()) for column in columns]
    most = [math.inf if f == _depths(results, v)[-1] else f for v, f in zip(variances, least, strict=True)]
    found = [_correlation(scales, least), _correlation(scales, most)]
    single = [_correlation(scales, [column[seed] for column in columns]) for seed in results.seeds]
    numbers["Spearman's rank correlation"] = found[0]
    numbers["Spearman's rank correlation, networks at the deepest asked without bound"] = found[1]
    numbers["Spearman's rank correlation, each seed"] = single
    interval = student_interval(single, "the seeds' rank correlations")
    if (found[0] >= LEAST) != (found[1] >= LEAST):
        return Undecided("it depends on how deep the networks train that train at the deepest asked"), numbers, interval
    return found[0] >= LEAST, numbers, interval


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; 0 where all depths are the same, which ranks nothing."""
    return spearman(one, other) if len(set(other)) > 1 else 0.0


def _sixfold(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    """Decide by the median of each column; the interval is that of the seeds' mean multiples."""
    numbers, met, unknown = dict[str, Any](), True, list[str]()
    logs = {seed: list[float]() for seed in results.seeds}
    for variance in _variances(results):
        if variance == CRITICAL:
            continue
        scale, depths, column = depth_scale(variance), _depths(results, variance), frontiers(results, variance)
        frontier = median(column.values())
        numbers[f"weight variance {variance:g}: frontier / xi_c"] = [depth / scale for depth in column.values()]
        numbers[f"weight variance {variance:g}: deepest asked / xi_c"] = depths[-1] / scale
        if (frontier == 0 and depths[0] > LOW * scale) or (frontier == depths[-1] <= HIGH * scale):
            unknown.append(f"{variance:g}")
        else:
            met = met and LOW <= frontier / scale <= HIGH
        for seed, depth in column.items():
            logs[seed] += [math.log(depth / scale)] if depth else []
    means = [math.exp(fmean(values)) if values else 0.0 for values in logs.values()]
    numbers["geometric mean over the columns that trained at all, each seed"] = means
    interval = student_interval(means, "the seeds' mean multiples")
    if met and unknown:
        return (
            Undecided(f"no network trains, or all asked do, at weight variance {', '.join(unknown)}"),
            numbers,
            interval,
        )
    return met, numbers, interval


def _critical(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    """Decide at the deepest asked; the interval is of the share of seeds whose critical network trained there."""
    numbers, far = dict[str, Any](), 0
    for variance in _variances(results):
        deepest = _depths(results, variance)[-1]
        column = results.column("trained", weight_variance=variance, depth=deepest)
        numbers[f"weight variance {variance:g}: trained at {deepest} layers"] = sum(column)
        far += sum(column) if deepest > HIGH * depth_scale(variance) else 0
    deepest = _depths(results)[-1]
    near = results.column("trained", weight_variance=CRITICAL, depth=deepest)
    numbers[f"weight variance {CRITICAL:g}: frontier"] = list(frontiers(results, CRITICAL).values())
    share = wilson_interval(sum(near), len(near))
    if not far and not all(near):
        reason = (
            f"at {deepest} layers the critical network trains in {sum(near)} of {len(near)} seeds within these steps"
        )
        return Undecided(reason), numbers, share
    return not far, numbers, share


def _twenty(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide beyond 20 layers; the interval is that of the deepest network that trained, over the seeds."""
    numbers, deepest = dict[str, Any](), dict.fromkeys(results.seeds, 0)
    for depth in _depths(results):
        rows = [(config, results.where(**config)) for config in results.configs if config["depth"] == depth]
        there = [[seed for seed, values in own if values["trained"]] for _, own in rows]
        deepest.update({seed: depth for own in there for seed in own})
        if depth > 20:
            numbers[f"initialisations that trained at {depth} layers, of {len(rows)} asked"] = sum(map(bool, there))
    numbers["deepest that trained, each seed"] = list(deepest.values())
    numbers["6 xi_c of weight variance 1"] = 6 * depth_scale(1.0)
    interval = student_interval(list(deepest.values()), "the seeds' deepest network that trained, layers")
    return max(deepest.values()) <= 20, numbers, interval


SOURCE = "Schoenholz et al. 2017, arXiv 1611.01232, abstract"


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; all of them rest on the whole grid."""
    deepest = max(settings["depths"])
    return [
        Claim(
            "trained where information travels", "“Random networks may be trained precisely when information can "
            "travel through them.”", f"Spearman's rank correlation of at least {LEAST:g} over the initialisations "
            "between xi_c, computed, and the depth up to which networks train (median over the seeds); not decided "
            "where it depends on how deep the networks train that train at the deepest asked", SOURCE, _travels,
            paper_value="the frontier follows about 6 xi_c",
        ),
        Claim(
            "about six depth scales", "Networks train to a depth of about 6 xi_c.", f"frontier over xi_c between "
            f"{LOW:g} and {HIGH:g}, median over the seeds, for every initialisation but the critical one; not decided "
            f"where a frontier within these bounds is the deepest asked, or above {LOW:g} xi_c the least asked does "
            "not train", "Schoenholz et al. 2017, arXiv 1611.01232", _sixfold, paper_value="6",
        ),
        Claim(
            "deep only near criticality", "“Arbitrarily deep networks may be trained only sufficiently close to "
            "criticality.”", f"the critical initialisation (weight variance {CRITICAL}) trains at {deepest} layers in "
            f"every seed, and none that is asked beyond {HIGH:g} xi_c trains there in any; not decided where only the "
            "first fails, since more steps might train it", SOURCE, _critical,
        ),
        Claim(
            "twenty layers", "Without skip connections, networks of more than about 20 layers could not be trained.",
            "no initialisation trains beyond 20 layers in any seed", "common in tutorials", _twenty,
            paper_value="plain convolutional networks of 10,000 layers (Xiao et al. 2018, arXiv 1806.05393; here R9)",
            correction="How deep depends on the initialisation: 6 xi_c is 22 layers for tanh at weight variance 1, 5 "
            "at PyTorch's default, and more the nearer the initialisation is to criticality. Plain convolutional "
            "networks of 10,000 layers have been trained (Xiao et al. 2018; R9).",
        ),
    ]  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the phase diagram, and how many steps each depth took."""
    variances, depths = _variances(results), _depths(results)
    columns = {variance: frontiers(results, variance) for variance in variances}
    frontier = []
    for seed in results.seeds:
        shown = [(variance, column[seed]) for variance, column in columns.items() if column.get(seed)]
        name = "deepest that trained"
        if shown:
            frontier.append(Series(f"{name}, seed {seed}", "measured", *_split(shown), group=name, seed=seed))
    ends = [(variance, float(_depths(results, variance)[-1])) for variance in variances]
    frontier.append(Series("deepest asked", "reference", *_split(ends)))
    grid = [variances[0] + i * (variances[-1] - variances[0]) / 50 for i in range(51)]
    for multiple, style in ((2.0, "bound"), (6.0, "predicted"), (12.0, "bound")):
        curve = [(v, multiple * depth_scale(v)) for v in grid]
        drawn = [(v, depth) for v, depth in curve if depth <= 4 * depths[-1]]
        drawn = sorted([*drawn, (CRITICAL, math.inf)])  # there the line breaks
        frontier.append(Series(f"{multiple:g} xi_c", style, *_split(drawn)))  # type: ignore[arg-type]
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
               f"the initialisation alone; xi_c is infinite near {CRITICAL}. At the deepest asked a frontier is a "
               "lower bound; where not even the least depth trained there is no point.",
               Axis("weight variance times fan-in"), Axis("hidden layers", "log"), tuple(frontier)),
        Figure("steps_by_depth", "Steps until half of the answers are right", "Every seed; a line ends where the next "
               "depth did not train.", Axis("hidden layers", "log"), Axis("steps"), tuple(steps)),
    ]  # fmt: skip


def _split(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
