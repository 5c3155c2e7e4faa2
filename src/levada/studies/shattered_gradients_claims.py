"""What R18 claims, and what it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import log, log2, pi
from statistics import fmean
from typing import Any

from levada.study import Axis, Claim, Figure, Results, Series, Statistic, measured_series
from levada.study.statistics import mann_whitney, sign_test, student_interval
from levada.theory import (
    batch_norm_gradient_correlation,
    batch_norm_residual_gradient_correlation,
    gradient_correlation,
    residual_gradient_correlation,
)

__all__ = ["CLAIMS", "figures"]

TOLERANCE, LEAST = 0.25, 0.05  # octaves; smaller cosines are those of a finite width
WIDTHS = 20  # without normalisation, layers are compared up to a twentieth of the width
HALVES = 6  # layers over which the factor per layer is taken


def predicted(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the closed form of a cell of pairs, for every depth."""
    return _closed_form(config["connection"], config["normalised"], config["depth"], config["correlation"])


@cache
def _closed_form(connection: str, normalised: bool, depth: int, correlation: float) -> tuple[float, ...]:
    if connection == "plain" and normalised:
        found = batch_norm_gradient_correlation(depth, correlation=correlation)
    elif connection == "plain":
        found = gradient_correlation("relu", 2.0, 0.0, depth, correlation)
    elif normalised:
        found = batch_norm_residual_gradient_correlation(depth, correlation=correlation)
    else:
        found = residual_gradient_correlation("relu", 2.0, depth, correlation)
    return tuple(float(value) for value in found)


def _kind(config: Mapping[str, Any]) -> str:
    return f"{config['connection']}, {'batch norm' if config['normalised'] else 'no normalisation'}"


def _name(config: Mapping[str, Any]) -> str:
    return f"{_kind(config)}, inputs of correlation {config['correlation']:g}"


def _law(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers, worst = dict[str, Any](), list[float]()
    for config in results.configs:
        theory, profiles = predicted(config), results.column("cosine", **config)
        means = [fmean(column) for column in zip(*profiles, strict=True)]
        last = config["depth"] if config["normalised"] else config["dim"] // WIDTHS
        pairs = list(zip(means, theory, strict=True))[1 : last + 1]
        apart = [log2(max(mean, 1e-9) / value) for mean, value in pairs if value >= LEAST]
        worst.append(max(apart, key=abs, default=0.0))
        numbers[f"{_name(config)}: largest deviation, octaves"] = worst[-1]
        numbers[f"{_name(config)}: layers compared"] = len(apart)
    return max(map(abs, worst)) <= TOLERANCE, numbers, student_interval(worst, "the cells' largest deviations, octaves")


def _factors(results: Results, first: int, last: int) -> list[float]:
    """Return each seed's mean factor per layer between two depths; 0 where the cosine is lost in noise."""
    return [(max(p[last] / p[first], 0.0)) ** (1 / (last - first)) for p in results.column("cosine")]


def _halves(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    factors = _factors(results, 0, HALVES)
    numbers = {"factor per layer": factors, "predicted": predicted(results.configs[0])[1]}
    return all(0.4 <= f <= 0.6 for f in factors), numbers, student_interval(factors, "the factor per layer")


def _exponential(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether deep layers still halve the cosine; the statistic counts seeds in which they do."""
    depth, theory = results.configs[0]["depth"], predicted(results.configs[0])
    first = depth // 2
    factors = _factors(results, first, depth)
    numbers = {
        "factor of the first layer": [profile[1] for profile in results.column("cosine")],
        f"factor per layer, layers {first} to {depth}": factors,
        f"factor per layer, layers {first} to {depth}, predicted": (theory[depth] / theory[first])
        ** (1 / (depth - first)),
        f"cosine at {depth} layers": [profile[depth] for profile in results.column("cosine")],
        f"cosine at {depth} layers, predicted": theory[depth],
        f"2^-{depth}": 2.0**-depth,
    }
    halved = [factor <= 0.6 for factor in factors]
    return all(halved), numbers, sign_test(sum(halved), len(halved))


def _slope(profile: Sequence[float], first: int) -> float:
    """Slope of log cosine against log depth from depth `first` on, by least squares."""
    depths = range(first, len(profile))
    x, y = [log(depth) for depth in depths], [log(max(profile[depth], 1e-9)) for depth in depths]
    centre = fmean(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def _power(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    slopes = [_slope(profile, 5) for profile in results.column("cosine")]
    numbers = {
        "exponent from 5 layers on": slopes,
        "predicted": _slope(predicted(results.configs[0]), 5),
        "predicted for great depth": -0.25 / (0.5 - 0.5 / pi),
    }
    return all(abs(s + 0.5) <= 0.2 for s in slopes), numbers, student_interval(slopes, "the exponent")


def _resistant(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    kept = {c["connection"]: [p[-1] for p in results.column("cosine", **c)] for c in results.configs}
    theory = {c["connection"]: predicted(c)[-1] for c in results.configs}
    numbers: dict[str, Any] = {kind: kept[kind] for kind in kept}
    numbers.update({f"{kind}, predicted": value for kind, value in theory.items()})
    met = min(kept["residual"]) > 10 * max(0.0, *kept["plain"])
    return met, numbers, mann_whitney(kept["residual"], kept["plain"])


def _white(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether plain networks end as white noise; the statistic counts seeds in which all cells do."""
    met, numbers = [True] * len(results.seeds), dict[str, Any]()
    for config in results.configs:
        rows = results.column("lag_one", **config)
        numbers[f"{_kind(config)}: one hidden layer"] = [row[0] for row in rows]
        numbers[f"{_kind(config)}: {config['depth']} layers more"] = last = [row[-1] for row in rows]
        met = [before and value < 0.2 for before, value in zip(met, last, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _between(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    last = {c["connection"]: [row[-1] for row in results.column("lag_one", **c)] for c in results.configs}
    first = [row[0] for row in results.column("lag_one")]
    numbers: dict[str, Any] = {f"{kind}, lag 1": values for kind, values in last.items()}
    numbers["one hidden layer, lag 1"] = first
    met = max(last["plain"]) + 0.3 < min(last["residual"]) and max(last["residual"]) < min(first)
    return met, numbers, mann_whitney(last["residual"], last["plain"])


ABSTRACT = "Balduzzi et al. 2017, arXiv 1702.08591, abstract"
UNRELATED: dict[str, Any] = {"measures": "pairs", "correlation": 0.0}
NORMED = {**UNRELATED, "normalised": True}
FAR = "“The gradients in architectures with skip-connections are far more resistant to shattering.”"
TENFOLD = (
    "networks {} batch normalisation, unrelated inputs: cosine after the last layer in every residual seed more than "
    "10 times that in every plain seed"
)
CLAIMS = (
    Claim(
        "the cosine is known", "A layer multiplies the cosine of two gradients by E[f'(u1) f'(u2)] / E[f'(u)^2] "
        "at the correlation of their signals; a skip adds 1 to both, and batch normalisation takes the mean from the "
        "signals.", f"|log2(measured / predicted)| <= {TOLERANCE} at every depth at which the prediction is {LEAST} or "
        "more (without normalisation also at most a twentieth of the width), mean over the seeds, in plain and "
        "residual networks, with and without batch normalisation, inputs of correlation 0 and 0.9; nothing is fitted",
        "derived from Poole et al. 2016, arXiv 1606.05340, and Yang et al. 2019, arXiv 1902.08129", _law,
        {"measures": "pairs"},
    ),
    Claim(
        "with batch normalisation each layer halves it", "“The correlation between gradients in standard feedforward "
        "networks decays exponentially with depth”, as 1/2^L.", "plain networks with batch normalisation, unrelated "
        f"inputs: mean factor per layer over the first {HALVES} layers within 20 % of 1/2 in every seed", ABSTRACT,
        _halves, {**NORMED, "connection": "plain"}, paper_value="1/2^L",
    ),
    Claim(
        "without it too", "“The correlation between gradients in standard feedforward networks decays exponentially "
        "with depth.”", "plain networks without normalisation, unrelated inputs: mean factor per layer over the deeper "
        "half of the layers at most 0.6 in every seed", ABSTRACT, _exponential,
        {**UNRELATED, "normalised": False, "connection": "plain"}, paper_value="1/2^L",
        correction="The first layer halves it. Then the signals become alike, a layer's factor is 1 - 3/l, and the "
        "cosine of wide networks falls as L^-3, a power of depth, until it is lost in what a finite width leaves.",
    ),
    Claim(
        "residual networks decay as a power", "“The gradients in architectures with skip-connections are far more "
        "resistant to shattering, decaying sublinearly”, as 1/sqrt(L).", "residual networks with batch normalisation, "
        "unrelated inputs: exponent of the cosine in depth, from 5 layers on, -0.5 +- 0.2 in every seed", ABSTRACT,
        _power, {**NORMED, "connection": "residual"}, paper_value="exponent -1/2",
        correction="The exponent is nearer to -0.73, to which it tends: batch normalisation takes the mean of the "
        "branches' outputs from the stream, which therefore grows by 1 - 1/pi a block and not by 1.",
    ),
    Claim(
        "skips resist", FAR, TENFOLD.format("with"), ABSTRACT, _resistant, NORMED,
    ),
    Claim(
        "skips resist without normalisation", FAR, TENFOLD.format("without"), ABSTRACT, _resistant,
        {**UNRELATED, "normalised": False},
        correction="Without normalisation the skip delays the same power law: in wide networks both cosines fall as "
        "L^-3, the residual one later, and it is 7 times as large at 50 layers.",
    ),
    Claim(
        "plain gradients are white noise", "The gradients of deep plain networks “resemble white noise”.",
        "autocorrelation of the derivative between neighbours of 256 inputs on a line below 0.2 after the last layer, "
        "in every seed, in plain networks with and without batch normalisation", ABSTRACT, _white,
        {"measures": "line", "connection": "plain"},
        correction="With batch normalisation they do. Without it neighbours' signals become alike faster than "
        "gradients come apart, and the gradient stays as smooth as after the first layers.",
    ),
    Claim(
        "residual gradients lie between", "With batch normalisation, gradients of residual networks lie between those "
        "of a shallow network and white noise.", "autocorrelation of neighbours after the last layer: every residual "
        "seed at least 0.3 above every plain one, and below every network of one hidden layer", ABSTRACT, _between,
        {"measures": "line", "normalised": True},
    ),
)  # fmt: skip


def _cosine_series(results: Results, config: Mapping[str, Any]) -> list[Series]:
    """Draw the cosine of every seed and its prediction, as far as that is 0.001 or more."""
    theory = predicted(config)
    depths = [depth for depth, cosine in enumerate(theory) if depth and cosine >= 1e-3]

    def points(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        return depths, [max(values["cosine"][depth], 1e-4) for depth in depths]

    line = Series(
        f"{_kind(config)}, predicted", "predicted", depths, [theory[depth] for depth in depths], _kind(config)
    )
    return [*measured_series(results, config, _kind(config), points), line]


def figures(results: Results) -> list[Figure]:
    """Draw the cosine by depth, the autocorrelation of neighbours by depth, and one gradient along the line."""
    cosines, neighbours, traces = list[Series](), list[Series](), list[Series]()
    for config in results.configs:
        if config["measures"] == "pairs":
            if config["correlation"] == 0:
                cosines += _cosine_series(results, config)
            continue
        layers = list(range(config["depth"] + 1))

        def by_depth(values: Mapping[str, Any], layers: list[int] = layers) -> tuple[list[int], list[float]]:
            return layers, values["lag_one"]

        neighbours += measured_series(results, config, _kind(config), by_depth)
        for seed, values in results.where(**config)[:1]:
            x = [-2 + 4 * i / (config["points"] - 1) for i in range(config["points"])]
            traces.append(Series(_kind(config), "measured", x, values["neuron"][1], seed=seed))
    ends = [1.0, float(max((c["depth"] for c in results.configs), default=1))]
    cosines.append(Series("1/sqrt(L)", "reference", ends, [length**-0.5 for length in ends]))
    return [
        Figure("cosine_by_depth", "Gradients of unrelated inputs", "Mean cosine over pairs of inputs; every seed, and "
               "the closed form, down to 0.001.", Axis("layers", "log"), Axis("cosine of the two gradients", "log"),
               tuple(cosines)),
        Figure("neighbours_by_depth", "Neighbours on a line", "Autocorrelation of the derivative between neighbours of "
               "256 inputs from -2 to 2; every seed. 1: a smooth function; 0: white noise.",
               Axis("layers after the first"), Axis("autocorrelation at lag 1"), tuple(neighbours)),
        Figure("gradient_on_a_line", "One neuron's derivative along the line", "After the last layer, of the first "
               "seed, relative to its root mean square.", Axis("input"), Axis("derivative"), tuple(traces)),
    ]  # fmt: skip
