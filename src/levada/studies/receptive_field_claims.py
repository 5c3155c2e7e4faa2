"""What R14 claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, sqrt
from statistics import fmean
from typing import Any

from levada.study import Claim, Results, Settings, Statistic
from levada.study.sequences import SYMBOLS
from levada.study.statistics import sign_test, student_interval
from levada.theory import field_deviation

__all__ = ["BAI", "CHANCE", "LUO", "claims"]

BAI = "Bai, Kolter and Koltun 2018, arXiv 1803.01271"
LUO = "Luo, Li, Urtasun and Zemel 2016, arXiv 1701.04128"
CHANCE, SIGMAS, LEARNT, FORGOTTEN = 1 / SYMBOLS, 3.0, 0.99, 0.25
EXPONENT, TOLERANCE = 0.5, 0.05
RECURRENT = ("LSTM", "GRU", "RNN")
TOGETHER = f"right answers of all seeds together within {SIGMAS:g} standard errors of 1/{SYMBOLS}"


def _name(config: Mapping[str, Any]) -> str:
    return f"{config['kind']}, {len(config['dilations'])} layers, lag {config['lag']}"


def _shares(results: Results, **fields: Any) -> list[float]:
    return [values["right"] / values["asked"] for _, values in results.where(**fields)]


def _beside_chance(results: Results, config: Mapping[str, Any]) -> float:
    """Standard errors that the share of right answers of all seeds lies above chance."""
    asked, right = (float(sum(results.column(name, **config))) for name in ("asked", "right"))
    return (right - asked * CHANCE) / sqrt(asked * CHANCE * (1 - CHANCE))


def _accuracy(results: Results, name: Any = _name, learnt: float = LEARNT) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether every seed learns what its network sees, and all seeds together nothing of what none does."""
    numbers: dict[str, Any] = {}
    met, farthest = [True] * len(results.seeds), 0.0
    for config in results.configs:
        shares, beyond = _shares(results, **config), config["beyond"]
        numbers[f"{_name(config)}: accuracy"] = shares
        if beyond:
            numbers[f"{_name(config)}: standard errors from chance"] = away = _beside_chance(results, config)
            farthest = max(farthest, abs(away))
        else:
            met = [before and share >= LEARNT for before, share in zip(met, shares, strict=True)]
    if any(config["beyond"] for config in results.configs):
        numbers["farthest from chance, standard errors"] = farthest
    return all(met) and farthest <= SIGMAS, numbers, sign_test(sum(met), len(met))


def _nothing(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met, numbers, _ = _accuracy(results)
    farthest = numbers["farthest from chance, standard errors"]
    return (
        met,
        numbers,
        Statistic(f"largest deviation from chance of {len(results.configs)}, standard errors", farthest),
    )


def _copies(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met, numbers = [True] * len(results.seeds), {}
    for config in results.configs:
        name, shares = config["network"], _shares(results, **config)
        numbers[f"{name}: accuracy at the last 10 steps"] = shares
        numbers[f"{name}: parameters"] = results.column("parameters", **config)[0]
        good = [s <= FORGOTTEN if name in RECURRENT else s >= LEARNT for s in shares]
        met = [before and now for before, now in zip(met, good, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _copies_nothing(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    (config,) = results.configs
    away = _beside_chance(results, config)
    numbers = {"accuracy at the last 10 steps": _shares(results), "receptive field": results.column("field")[0]}
    return abs(away) <= SIGMAS, numbers, Statistic("deviation from chance, standard errors", away)


def _slope(depths: Sequence[float], widths: Sequence[float]) -> float:
    x, y = [log(depth) for depth in depths], [log(width) for width in widths]
    along = [value - fmean(x) for value in x]
    return sum(a * b for a, b in zip(along, y, strict=True)) / sum(a * a for a in along)


def _grows(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    good = True
    slopes: list[list[float]] = []
    depths = sorted({config["depth"] for config in results.configs})
    for activation in ("linear", "ReLU"):
        widths = [[v[0] for v in results.column("deviation", activation=activation, depth=d)] for d in depths]
        found = [_slope(depths, column) for column in zip(*widths, strict=True)]
        good, slopes = good and abs(fmean(found) - EXPONENT) <= TOLERANCE, [*slopes, found]
        numbers[f"{activation}: exponent"] = found
        for depth, measured in zip(depths, widths, strict=True):
            extents = results.column("extent", activation=activation, depth=depth)
            good = good and set(extents) == {2 * depth + 1}
            numbers[f"{activation}, {depth} layers: deviation"] = measured
            numbers[f"{depth} layers: deviation of independent weights"] = field_deviation([3] * depth)
            numbers[f"{depth} layers: exact field"] = extents[0]
    # Both activations of a seed have the same weights: the seeds are independent, and no more.
    of_seeds = [fmean(pair) for pair in zip(*slopes, strict=True)]
    return good, numbers, student_interval(of_seeds, "the seeds' exponents, each the mean of both activations")


def _needs_it_whole(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    whole, short = _shares(results, network="whole field"), _shares(results, network="short field")
    ahead = sum(a > b for a, b in zip(whole, short, strict=True))
    numbers = {"whole field: test accuracy": whole, "short field: test accuracy": short}
    return ahead == len(whole), numbers, sign_test(ahead, len(whole))


DIGITS = Claim(
    "digits need the whole field", "A digit read pixel by pixel is recognised by a field that holds it.",
    "test accuracy(field of 1531 pixels) > test accuracy(field of 49 pixels) in every seed, at equal weights",
    f"{BAI}, table 1", _needs_it_whole, {"measures": "digits"}, paper_value="99.0 % by a TCN",
)  # fmt: skip
# Written before any network had read a pressure.
PRESSURES = Claim(
    "pressures need the whole field", "Which pig a pressure curve of 2,000 steps is of is told better by a field that "
    "spans the curve than by its end.",
    "accuracy on later curves of the same 52 pigs (field of 3067 steps) > accuracy (field of 55 steps) in every seed, "
    "at equal weights", f"data: Guillame-Bert and Dubrawski 2017; question: {BAI}", _needs_it_whole,
    {"measures": "pressure"},
)  # fmt: skip


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; digits and pressures are claimed where they are read."""
    steps, delay = settings["steps"], settings["copy_delay"]
    recall = {"measures": "recall", "arm": "field"}
    found = [
        Claim(
            "nothing beyond the field", "The answer of a convolution does not depend on what lies outside of its "
            "receptive field.", f"{TOGETHER}, at every lag from 16 on, for both networks with a field of 16 steps: "
            "dilations 1, 2, 4, 8 with kernel 2, and 3 layers of kernel 6", BAI, _nothing, {**recall, "beyond": True},
        ),
        Claim(
            "all within the field", "The field chooses how long the memory is: all that lies within it can be used.",
            f"accuracy of at least {LEARNT:.0%} after {steps} steps in every seed, at every lag below 16, for both "
            "networks", BAI, _accuracy, {**recall, "beyond": False},
        ),
        Claim(
            "depth needed", "The field grows linearly with depth, and exponentially if dilations double.",
            f"kernel 3, lag D: ceil(D/2) undilated layers, or ceil(log2(D/2 + 1)) whose dilations double, have an "
            f"accuracy of at least {LEARNT:.0%} after {steps} steps in every seed; with one layer fewer, {TOGETHER}",
            "van den Oord et al. 2016, arXiv 1609.03499; " + BAI, _accuracy, {"measures": "recall", "arm": "depth"},
        ),
        Claim(
            "to see is to learn", "A network whose receptive field reaches the lag learns it.",
            f"kernel 3, lag {settings['reach_lag']}, layers just enough, undilated and dilated: accuracy of at least "
            f"{LEARNT:.0%} after {steps} steps in every seed", "common in tutorials", _accuracy,
            {"measures": "recall", "arm": "reach"},
            correction="The field says what can be learnt, the effective field how soon. In these residual networks at "
            "He's initialisation half of the gradient's energy takes the skip, and k taps share the other half: the "
            "last lag in sight of n layers has about (1/2k)^n of it. Dilations reach it with fewer layers.",
        ),
        Claim(
            "convolutions copy, recurrent networks do not", "Temporal convolutional networks have a longer memory than "
            "recurrent ones of the same capacity.", f"copy memory, T = {delay}, {settings['copy_steps']} steps "
            "of Adam: in every seed, accuracy at the last 10 steps of a TCN with a field of 106 steps at least "
            f"{LEARNT:.0%}, of LSTM, GRU and RNN of as many parameters at most {FORGOTTEN:.0%}", f"{BAI}, figure 5",
            _copies, {"measures": "copy", "network": ("TCN", *RECURRENT)}, paper_value="curves only, T = 500 and more",
        ),
        Claim(
            "too short a field copies nothing", "A field shorter than the delay cannot copy.",
            f"the same task, a field of 8 steps: {TOGETHER}", BAI, _copies_nothing,
            {"measures": "copy", "network": "TCN, field too short"},
        ),
        Claim(
            "the effective field grows as the root of depth", "The effective receptive field grows as the square root "
            "of the depth, the exact one linearly.", "untrained plain networks of kernel 3, linear and ReLU: exponent "
            f"of the standard deviation of the gradient's energy, by depth {min(settings['depths'])} to "
            f"{max(settings['depths'])}, within {TOLERANCE} of {EXPONENT} on average over the seeds; exact field of "
            "2 depth + 1 steps in every seed", LUO, _grows, {"measures": "field"},
        ),
    ]  # fmt: skip
    found += [DIGITS] if settings["digit_steps"] else []
    return found + ([PRESSURES] if settings["pressure_steps"] else [])
