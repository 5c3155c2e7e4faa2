"""What R12 claims."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log, log2
from statistics import fmean
from typing import Any

from levada.study import Claim, Results, Settings, Statistic, Undecided
from levada.study.statistics import student_interval
from levada.theory import crossing_bound, most_pieces, seldom_fitted

__all__ = ["BY_DEPTH", "ELDAN", "EQUAL", "HANIN", "TELGARSKY", "THREE", "TWO", "claims"]

TELGARSKY = "Telgarsky 2016, arXiv 1602.04485"
ELDAN = "Eldan and Shamir 2016, arXiv 1512.03965"
HANIN = "Hanin and Rolnick 2019, arXiv 1901.09021"
FOUND, EXPONENT, TOLERANCE = 0.05, 1.0, 0.15
FITTED, BITS = 0.01, 32  # share of wrong labels, bits of a float32
SETTLED = 0.9  # of an error that four times the steps leave, at least, where steps are not what it hangs on
TWO, THREE = "two layers", "three layers"
BY_DEPTH, EQUAL = "units by depth", "equal units"
SHALLOW = ("shallow, a quarter of the pieces", "shallow, 8 times the weights", "shallow, pieces enough")
DEEP = ("deep, as constructed", "deep, wide")


def _name(config: Mapping[str, Any]) -> str:
    return f"2^{config['folds']} pieces, {config['network']}"


def _folds(results: Results) -> tuple[bool, dict[str, Any], None]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for config in results.configs:
        found = [values for _, values in results.where(**config)]
        good = [(v["error"], v["unequal"], v["pieces"]) == (0, 0, 2 ** config["folds"]) for v in found]
        met = [before and now for before, now in zip(met, good, strict=True)]
        numbers[f"{config['folds']} folds: pieces"] = found[0]["pieces"]
        numbers[f"{config['folds']} folds: weights and biases"] = found[0]["parameters"]
    return all(met), numbers, None


def _bounded(results: Results) -> tuple[bool, dict[str, Any], None]:
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
    return all(met), numbers, None


def _found(results: Results) -> tuple[bool, dict[str, Any], None]:
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
    return all(met), numbers, None


def _any_function(results: Results) -> tuple[bool | Undecided, dict[str, Any], None]:
    """Decide by counting networks; what training found of some of them stands beside it."""
    errors = {config["network"]: results.column("error", **config) for config in results.configs}
    numbers: dict[str, Any] = {f"{name}: error": found for name, found in errors.items()}
    weights = {config["network"]: results.column("parameters", **config)[0] for config in results.configs}
    numbers |= {f"{name}: weights and biases": count for name, count in weights.items()}
    points = results.configs[0]["points"]
    few = ceil(log2(weights["shallow"]))
    share = seldom_fitted(few, BITS, points)
    numbers |= {
        "logarithm to base 2 of the shallow network's": few,
        f"share of labellings that {few} of {BITS} bits fit, at most": share,
        f"fewest weights of {BITS} bits for half of the labellings, at any depth": (points - 1) / BITS,
    }
    if max(errors["shallow"]) > FITTED:
        return Undecided("the shallow network did not fit the labels: nothing shows that it can"), numbers, None
    return share > 0.5, numbers, None


def _linear(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met, found = [], []
    for layered, exponent in ((BY_DEPTH, EXPONENT), (EQUAL, 0.0)):
        configs = sorted((c for c in results.configs if c["layered"] == layered), key=lambda config: config["depth"])
        pieces = [results.column("pieces", **config) for config in configs]
        for config, own in zip(configs, pieces, strict=True):
            numbers[f"{config['depth']} layers of {config['width']} units: pieces"] = own
        along = [log(config["depth"]) for config in configs]
        slopes = [_slope(along, [log(n) for n in own]) for own in zip(*pieces, strict=True)]
        numbers[f"{layered}: exponent by depth"] = slopes
        met.append(abs(fmean(slopes) - exponent) <= TOLERANCE)
        found.append(student_interval(slopes, f"the seeds' exponents, {layered}"))
    deepest = max(results.configs, key=lambda config: config["depth"])
    numbers[f"{deepest['depth']} layers of {deepest['width']} units: most pieces"] = float(
        most_pieces([deepest["width"]] * deepest["depth"])
    )
    numbers[f"{EQUAL}: interval of the exponent"] = [found[1].low, found[1].high]
    return all(met), numbers, found[0]


def _slope(x: list[float], y: list[float]) -> float:
    along = [value - fmean(x) for value in x]
    return sum(a * b for a, b in zip(along, y, strict=True)) / sum(a * a for a in along)


def _shells(results: Results) -> tuple[bool | Undecided, dict[str, Any], None]:
    """Decide whether three layers are ahead, where more steps do not help two."""
    numbers: dict[str, Any] = {}
    ahead, behind, moving = [], [], []
    for dim in sorted({config["dim"] for config in results.configs}):
        own = {config["network"]: config for config in results.configs if config["dim"] == dim}
        errors = {name: results.column("error", **config) for name, config in own.items()}
        for name, config in own.items():
            numbers[f"{dim} dimensions, {name}: test error"] = errors[name]
            numbers[f"{dim} dimensions, {name}: training error"] = results.column("train_error", **config)
        deep = errors.pop(THREE)
        ahead += [value < min(others) for value, *others in zip(deep, *errors.values(), strict=True)]
        behind.append(fmean(deep) >= min(map(fmean, errors.values())))
        left = fmean(errors[f"{TWO}, 4 times the steps"]) / fmean(errors[TWO])
        numbers[f"{dim} dimensions, two layers: share of the error that 4 times the steps leave"] = left
        moving.append(left < SETTLED)
    if any(behind):
        return False, numbers, None
    if any(moving):
        return Undecided("two layers still learn: what they cannot represent is not seen in their error"), numbers, None
    if not all(ahead):
        return Undecided(f"three layers are ahead on average, and in {sum(ahead)} of {len(ahead)} cases"), numbers, None
    return True, numbers, None


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
            "training finds it", f"In {settings['steps']:,} steps a deep network learns what it represents so cheaply.",
            f"k = {folds}, k hidden layers of 2 or of {settings['width']} units, {settings['steps']} steps of Adam: "
            f"error at most {FOUND} on the ends of the pieces, in every seed", "common in tutorials", _found, learned,
            correction="To represent is not to learn: from random weights as many steps find a sawtooth of many teeth "
            "neither with layers nor with units enough. This is said of these steps and sizes; larger networks and "
            "longer trainings are not tried.",
        ),
        Claim(
            "any function", "Deep networks represent any function that a shallow one can, with exponentially fewer "
            "parameters.", f"decided by counting: {settings['label_points']} points with random labels, which one "
            f"hidden layer fits in training (at most {FITTED:.0%} wrong, else not decided); networks of as many "
            "float32 weights as the logarithm to base 2 of the number of its weights fit, at any depth, more "
            "than half of the labellings", f"common in tutorials, after {ELDAN}", _any_function, {"measures": "labels"},
            paper_value="there is one function, of three layers, that two layers need exponential width for",
            correction="There are such functions, and they are few: of p weights of b bits there are at most 2^(pb) "
            "networks of one architecture, and 2^n labellings of n points, so that nearly every labelling takes n/b "
            "weights at any depth. Eldan and Shamir give one radial function.",
        ),
        Claim(
            "untrained, few pieces", "Before training, the number of linear pieces along a line grows in proportion "
            "to the number of units, however they are layered.", "between two Gaussian points, exponent of the number "
            f"of pieces by depth, {min(settings['depths'])} to {max(settings['depths'])} layers, on average over the "
            f"seeds: within {TOLERANCE} of {EXPONENT:g} with layers of {settings['width']} units, and within "
            f"{TOLERANCE} of 0 where all have {settings['width'] * max(settings['depths'])} units in all", HANIN,
            _linear, {"measures": "untrained"}, paper_value="linear in the number of units",
        ),
        Claim(
            "three layers see shells", "A radial function that three layers approximate takes two layers exponential "
            "width.", f"Gaussian points in {', '.join(map(str, settings['dims']))} dimensions, labels by shells of "
            f"width 1 around sqrt(d), {settings['radial_steps']:,} steps: test error of three layers below that of two "
            "layers with as many weights, with four times as many, and with four times the steps, in every seed and "
            "dimension; not held where it is not so on average in a dimension; not decided where four times the steps "
            f"leave less than {SETTLED:.0%} of two layers' error, or where some seeds differ", ELDAN, _shells,
            {"measures": "radial"}, paper_value="width C d^(19/4) against c e^(cd); the constants are not known",
            correction="This shows the direction, not the rate: the theorem's function and measure are others, and "
            "a handful of dimensions tells no exponential from a power.",
        ),
    ]  # fmt: skip
