"""What R12 claims."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from statistics import fmean
from typing import Any

from levada.study import Claim, Results, Settings, Statistic
from levada.study.statistics import mann_whitney, sign_test, student_interval
from levada.theory import crossing_bound, most_pieces

__all__ = ["ELDAN", "HANIN", "TELGARSKY", "claims"]

TELGARSKY = "Telgarsky 2016, arXiv 1602.04485"
ELDAN = "Eldan and Shamir 2016, arXiv 1512.03965"
HANIN = "Hanin and Rolnick 2019, arXiv 1901.09021"
FOUND, EXPONENT, TOLERANCE = 0.05, 1.0, 0.15
SHALLOW = ("shallow, a quarter of the pieces", "shallow, 8 times the weights", "shallow, pieces enough")
DEEP = ("deep, as constructed", "deep, wide")


def _name(config: Mapping[str, Any]) -> str:
    return f"2^{config['folds']} pieces, {config['network']}"


def _folds(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for config in results.configs:
        found = [values for _, values in results.where(**config)]
        good = [(v["error"], v["unequal"], v["pieces"]) == (0, 0, 2 ** config["folds"]) for v in found]
        met = [before and now for before, now in zip(met, good, strict=True)]
        numbers[f"{config['folds']} folds: pieces"] = found[0]["pieces"]
        numbers[f"{config['folds']} folds: weights and biases"] = found[0]["parameters"]
    return all(met), numbers, sign_test(sum(met), len(met))


def _bounded(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether every shallow network has the errors that its units leave it, and the pieces."""
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for config in results.configs:
        most = most_pieces(config["widths"])
        least = crossing_bound(most, 2 ** config["folds"] + 1)
        found = [values for _, values in results.where(**config)]
        good = [v["error"] >= least and v["pieces"] <= most for v in found]
        met = [before and now for before, now in zip(met, good, strict=True)]
        numbers[f"{_name(config)}: least error"] = least
        numbers[f"{_name(config)}: error"] = [v["error"] for v in found]
        numbers[f"{_name(config)}: most pieces"] = most
        numbers[f"{_name(config)}: pieces"] = [v["pieces"] for v in found]
    return all(met), numbers, sign_test(sum(met), len(met))


def _found(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for config in results.configs:
        errors = results.column("error", **config)
        numbers[f"{_name(config)}: error"] = errors
        numbers[f"{_name(config)}: pieces"] = results.column("pieces", **config)
        if config["network"] in DEEP:
            met = [before and wrong <= FOUND for before, wrong in zip(met, errors, strict=True)]
        elif config["network"] not in SHALLOW:
            numbers[f"{_name(config)}: error before training"] = results.column("error_before", **config)
    return all(met), numbers, sign_test(sum(met), len(met))


def _any_function(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    errors = {config["network"]: results.column("error", **config) for config in results.configs}
    numbers: dict[str, Any] = {f"{name}: error": found for name, found in errors.items()}
    for config in results.configs:
        numbers[f"{config['network']}: weights and biases"] = results.column("parameters", **config)[0]
    points = results.configs[0]["points"]
    numbers["fewest float32 weights and biases for half of the labellings, at any depth"] = (points - 1) / 32
    small, shallow = errors["deep, an eighth of the weights"], errors["shallow"]
    return all(a <= b for a, b in zip(small, shallow, strict=True)), numbers, mann_whitney(small, shallow)


def _linear(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    depths = sorted(config["depth"] for config in results.configs)
    pieces = {depth: results.column("pieces", depth=depth) for depth in depths}
    numbers: dict[str, Any] = {f"{depth} layers: pieces": found for depth, found in pieces.items()}
    width = results.configs[0]["width"]
    numbers[f"{depths[-1]} layers: most pieces"] = float(most_pieces([width] * depths[-1]))
    numbers[f"{depths[-1]} layers: pieces per unit"] = [n / (width * depths[-1]) for n in pieces[depths[-1]]]
    slopes = [_slope([log(d) for d in depths], [log(n) for n in own]) for own in zip(*pieces.values(), strict=True)]
    numbers["exponent by depth"] = slopes
    return abs(fmean(slopes) - EXPONENT) <= TOLERANCE, numbers, student_interval(slopes, "the seeds' exponents")


def _slope(x: list[float], y: list[float]) -> float:
    along = [value - fmean(x) for value in x]
    return sum(a * b for a, b in zip(along, y, strict=True)) / sum(a * a for a in along)


def _shells(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for dim in sorted({config["dim"] for config in results.configs}):
        errors = {
            config["network"]: results.column("error", **config) for config in results.configs if config["dim"] == dim
        }
        numbers |= {f"{dim} dimensions, {name}: test error": found for name, found in errors.items()}
        deep = errors.pop("three layers")
        best = [min(others) for others in zip(*errors.values(), strict=True)]
        met = [before and own < other for before, own, other in zip(met, deep, best, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def claims(settings: Settings) -> list[Claim]:
    """Give the claims."""
    folds = ", ".join(map(str, settings["folds"]))
    learned = {"measures": "sawtooth"}
    return [
        Claim(
            "a deep network folds", "Depth represents some functions with exponentially fewer units.",
            f"two units a layer, k layers, k up to {max(settings['constructed'])}: no error on the 2^k + 1 ends of the "
            "sawtooth's pieces, every bit of it right at 1,000 random dyadic points, and exactly 2^k pieces", TELGARSKY,
            _folds, {"measures": "construction"}, paper_value="3k^3 + 12 nodes where k layers need 2^k",
        ),
        Claim(
            "a shallow one cannot", "Without depth the same function takes exponentially many units.",
            f"trained networks with one hidden layer of m units, k = {folds}: at most m + 1 pieces, counted, and an "
            "error of at least (1 - (m + 2) / (2^k + 1)) / 2, in every seed", f"{TELGARSKY}, lemma 3.1", _bounded,
            {**learned, "network": SHALLOW}, paper_value="fewer than 2^k nodes: an L1 distance of at least 1/64",
        ),
        Claim(
            "training finds it", "A deep network learns what it represents so cheaply.",
            f"k = {folds}, k hidden layers of 2 or of {settings['width']} units, {settings['steps']} steps of Adam: "
            f"error at most {FOUND} on the ends of the pieces, in every seed", "common in tutorials", _found, learned,
            correction="To represent is not to learn: from random weights gradient descent finds a sawtooth of many "
            "teeth with neither many layers nor many units, and a network of the construction's own shape learns "
            "nothing at all.",
        ),
        Claim(
            "any function", "Deep networks represent any function that a shallow one can, with exponentially fewer "
            "parameters.", f"{settings['label_points']} points with random labels: training error of four hidden "
            "layers with an eighth of the weights at most that of one hidden layer, in every seed",
            f"common in tutorials, after {ELDAN}", _any_function, {"measures": "labels"},
            paper_value="there is one function, of three layers, that two layers need exponential width for",
            correction="There are such functions, and they are few: of p weights of b bits there are at most 2^(pb) "
            "networks of one architecture, and 2^n labellings of n points, so that nearly every labelling takes n/b "
            "weights at any depth. Eldan and Shamir give one radial function.",
        ),
        Claim(
            "untrained, few pieces", "Before training, the number of linear pieces along a line grows in proportion "
            "to the number of units, however they are layered.", "between two Gaussian points, layers of "
            f"{settings['width']} units: exponent of the number of pieces by depth, {min(settings['depths'])} to "
            f"{max(settings['depths'])} layers, within {TOLERANCE} of {EXPONENT:g} on average over the seeds", HANIN,
            _linear, {"measures": "untrained"}, paper_value="linear in the number of units",
        ),
        Claim(
            "three layers see shells", "A radial function that three layers approximate takes two layers exponential "
            "width.", f"Gaussian points in {', '.join(map(str, settings['dims']))} dimensions, labels by shells of "
            "width 1 around sqrt(d), trained: test error of three layers below that of two layers with as many "
            "weights and with four times as many, in every seed and dimension", ELDAN, _shells,
            {"measures": "radial"}, paper_value="width C d^(19/4) against c e^(cd); the constants are not known",
            correction="This shows the direction, not the rate: the theorem's function and measure are others, and "
            "a handful of dimensions tells no exponential from a power.",
        ),
    ]  # fmt: skip
