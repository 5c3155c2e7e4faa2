"""What R22 claims and draws."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from levada.study import Axis, Claim, Figure, Results, Settings, Statistic, Undecided, measured_series
from levada.study.statistics import cliffs_delta, mann_whitney, student_interval

__all__ = ["claims", "figures"]

HE = "He, Zhang, Ren and Sun 2015, arXiv 1512.03385, section"
HUANG = "Huang, Liu, van der Maaten and Weinberger 2017, arXiv 1608.06993, section"
# Test error on CIFAR-10, %: lowest and highest mean of five seeds with which the paper's figure is reproduced. Of plain
# networks the paper has a figure without numbers; the ends are of two reproductions, and of "higher than 60%" at 110.
PAPER = {
    ("plain", 20): (9.0, 10.0), ("plain", 56): (12.0, 100.0), ("plain", 110): (60.0, 100.0),
    ("residual", 20): (8.35, 9.15), ("residual", 32): (7.11, 7.91), ("residual", 44): (6.77, 7.57),
    ("residual", 56): (6.57, 7.37), ("residual", 110): (6.26, 6.96), ("dense", 40): (4.84, 5.64),
    ("dense BC", 100): (4.11, 4.91),
}  # fmt: skip
MARGIN = 1  # point of training error by which a network may be worse


def _percent(results: Results, kind: str, depth: int, name: str = "train_error") -> list[float]:
    return [100 * share for share in results.column(name, kind=kind, depth=depth)]


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; those of the papers' tables where CIFAR-10 is read."""
    shallow, deep = min(settings["depths"]), 56 if 56 in settings["depths"] else max(settings["depths"])
    dense = min(settings["dense_depths"])

    def plain_degrades(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
        low, high = _percent(results, "plain", shallow), _percent(results, "plain", deep)
        numbers = {f"plain-{shallow}, training error %": low, f"plain-{deep}, training error %": high,
                   "Cliff's delta": cliffs_delta(high, low)}  # fmt: skip
        return all(b > a for a, b in zip(low, high, strict=True)), numbers, mann_whitney(high, low)

    def no_worse(kind: str, depth: int) -> Any:
        def decide(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
            known, asked = _percent(results, "residual", shallow), _percent(results, kind, depth)
            apart = [b - a for a, b in zip(known, asked, strict=True)]
            numbers = {f"residual-{shallow}, training error %": known, f"{kind}-{depth}, training error %": asked}
            interval = student_interval(apart, "the difference of means, points")
            low, high = interval.low or 0.0, interval.high or 0.0
            if low <= MARGIN < high:
                return Undecided(f"the interval holds differences on both sides of {MARGIN:g} point"), numbers, interval
            return high <= MARGIN, numbers, interval

        return decide

    asked = "the 95 % interval of its mean training error less that of"
    margin = f"below {MARGIN:g} point (above it: not held; on both sides: not decided)"
    found = [
        Claim(
            "plain networks degrade on images", "“The deeper network has higher training error.”",
            f"training error(plain-{deep}) > training error(plain-{shallow}) in every seed", f"{HE} 1", plain_degrades,
            {"kind": "plain", "depth": (shallow, deep)}, paper_value="Figure 6: curves only, of CIFAR-10",
        ),
        Claim(
            "residual networks do not degrade on images", "“Our deep residual nets can easily enjoy accuracy gains "
            "from greatly increased depth.”", f"residual-{deep}: {asked} residual-{shallow}, by seeds, {margin}",
            f"{HE} 1", no_worse("residual", deep), {"kind": "residual", "depth": (shallow, deep)},
            paper_value="test error on CIFAR-10: 8.75 % at 20 layers, 6.97 % at 56",
        ),
        Claim(
            "dense networks train", "Convolutional networks are “efficient to train if they contain shorter "
            "connections”.", f"dense-{dense}: {asked} residual-{shallow}, by seeds, {margin}", f"{HUANG} 1",
            no_worse("dense", dense), {"kind": ("residual", "dense"), "depth": (shallow, dense)},
            paper_value="test error on CIFAR-10: 5.24 % at 40 layers",
        ),
    ]  # fmt: skip
    rows = [(kind, depth) for kind, depth in PAPER if _trained(settings, kind, depth)]
    if settings["data"] == "cifar10" and rows:
        kinds, depths = (tuple(dict.fromkeys(part)) for part in zip(*rows, strict=True))
        found.append(Claim(
            "the papers' errors", "The test errors of the papers' tables on CIFAR-10.", "mean test error after the "
            "last step, in %: " + "; ".join(f"{k}-{d} {PAPER[k, d][0]} to {PAPER[k, d][1]}" for k, d in rows),
            f"{HE} 4.2; {HUANG} 4", _as_printed, {"kind": kinds, "depth": depths},
            paper_value="residual 8.75, 7.51, 7.17, 6.97, 6.43 (6.61 +- 0.16 of five); dense 5.24, BC 4.51",
        ))  # fmt: skip
    return found


def _trained(settings: Settings, kind: str, depth: int) -> bool:
    if kind == "dense BC":
        return bool(depth == settings["bottleneck_depth"])
    return depth in settings["dense_depths" if kind == "dense" else "depths"]


def _as_printed(results: Results) -> tuple[bool, dict[str, Any], None]:
    numbers: dict[str, Any] = {}
    met = True
    for (kind, depth), (low, high) in PAPER.items():
        errors = _percent(results, kind, depth, "test_error")
        if errors:
            numbers[f"{kind}-{depth}, test error %"] = errors
            met = met and low <= fmean(errors) <= high
    return met, numbers, None


def figures(results: Results) -> list[Figure]:
    """Draw the training error by step."""

    def curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        return values["curves"]["steps"], [100 * share for share in values["curves"]["error"]]

    curves = []
    for config in results.configs:
        curves += measured_series(results, config, f"{config['kind']}-{config['depth']}", curve)
    return [
        Figure("training_curves", "Training error by depth and connection", "Every seed, on the batches; a point is "
               "the mean of a fiftieth of the steps.", Axis("step"), Axis("training error, %"), tuple(curves)),
    ]  # fmt: skip
