"""What R18 claims, and what it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import log, log2, pi
from statistics import fmean
from typing import Any

from levada.study import Axis, Claim, Figure, Results, Series, Statistic, Undecided, measured_series
from levada.study.statistics import mann_whitney, student_interval
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
NOISE = 0.02  # to which a cosine is known without normalisation
# Up to layer 5 the closed form is 0.1 and a halved cosine 0.03.
FIRST, LAST, BEYOND = 2, 5, 8
SHALLOW, DEEP = 10, 15  # layers over which the skip's advantage without normalisation is taken, the mean of cosines
SHOWN = 1e-3  # the least cosine that is drawn
HALF = 0.1  # how far an exponent may be from that of 1/sqrt(L)


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
    """Decide by each cell's mean over the seeds; the interval is that of the seeds' deviations, all cells together."""
    numbers, worst = dict[str, Any](), list[float]()
    seeds: dict[int, list[float]] = {seed: [] for seed in results.seeds}
    for config in results.configs:
        theory, profiles = predicted(config), {s: v["cosine"] for s, v in results.where(**config)}
        last = config["depth"] if config["normalised"] else config["dim"] // WIDTHS
        depths = [d for d, value in enumerate(theory[: last + 1]) if d and value >= LEAST]
        means = [fmean(profile[d] for profile in profiles.values()) for d in depths]
        apart = [_octaves(mean, theory[d]) for mean, d in zip(means, depths, strict=True)]
        worst.append(max(apart, key=abs, default=0.0))
        numbers[f"{_name(config)}: largest deviation, octaves"] = worst[-1]
        numbers[f"{_name(config)}: layers compared"] = len(apart)
        for seed, profile in profiles.items():
            seeds[seed] += [_octaves(profile[d], theory[d]) for d in depths]
    means = [fmean(apart) for apart in seeds.values()]
    return max(map(abs, worst)) <= TOLERANCE, numbers, student_interval(means, "the seeds' mean deviations, octaves")


def _octaves(measured: float, theory: float) -> float:
    return log2(max(measured, 1e-9) / theory)


def _factors(results: Results, first: int, last: int, **fields: Any) -> list[float]:
    """Return each seed's mean factor per layer between two depths; 0 where the cosine is lost in noise."""
    return [_factor(profile, first, last) for profile in results.column("cosine", **fields)]


def _factor(profile: Sequence[float], first: int, last: int) -> float:
    return float(max(profile[last] / profile[first], 0.0) ** (1 / (last - first)))


def _halves(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    factors = _factors(results, 0, HALVES)
    numbers = {"factor per layer": factors, "predicted": predicted(results.configs[0])[1]}
    return all(0.4 <= f <= 0.6 for f in factors), numbers, student_interval(factors, "the factor per layer")


def _exponential(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    """Decide by layers in which a halved cosine would still be seen; a network that does halve it is the control."""
    numbers = dict[str, Any]()
    for config in sorted(results.configs, key=lambda config: bool(config["normalised"])):
        theory = predicted(config)
        for first, last in ((0, 1), (FIRST, LAST), (LAST, BEYOND)):
            name = f"{_kind(config)}: factor per layer, layers {first} to {last}"
            numbers[name] = _factors(results, first, last, **config)
            numbers[f"{name}, predicted"] = _factor(theory, first, last)
    own, control = (_factors(results, FIRST, LAST, normalised=normalised) for normalised in (False, True))
    interval = student_interval(own, f"the factor per layer without normalisation, layers {FIRST} to {LAST}")
    if max(control) > 0.6:
        return Undecided("the control, whose cosine each layer halves, is not seen to do so"), numbers, interval
    return all(factor <= 0.6 for factor in own), numbers, interval


def _slope(profile: Sequence[float], first: int) -> float:
    """Slope of log cosine against log depth from depth `first` on, by least squares."""
    depths = range(first, len(profile))
    x, y = [log(depth) for depth in depths], [log(max(profile[depth], 1e-9)) for depth in depths]
    centre = fmean(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def _exponents(results: Results) -> tuple[list[float], dict[str, Any], Statistic]:
    slopes = [_slope(profile, 5) for profile in results.column("cosine")]
    numbers = {
        "exponent from 5 layers on": slopes,
        "predicted": _slope(predicted(results.configs[0]), 5),
        "predicted for great depth": -0.25 / (0.5 - 0.5 / pi),
    }
    return slopes, numbers, student_interval(slopes, "the exponent")


def _ends(interval: Statistic) -> tuple[float, float]:
    return (interval.value if interval.low is None else interval.low), (
        interval.value if interval.high is None else interval.high
    )


def _sublinear(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    slopes, numbers, interval = _exponents(results)
    low, high = _ends(interval)
    return min(*slopes, low) > -1 and max(*slopes, high) < 0, numbers, interval


def _root(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    """Decide by whether the exponent's interval lies within the bounds, or outside them."""
    _, numbers, interval = _exponents(results)
    low, high = _ends(interval)
    if low >= -0.5 - HALF and high <= -0.5 + HALF:
        return True, numbers, interval
    if high < -0.5 - HALF or low > -0.5 + HALF:
        return False, numbers, interval
    return Undecided(f"the exponent's interval reaches over a bound of -0.5 +- {HALF:g}"), numbers, interval


def _resistant(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    kept = {c["connection"]: [p[-1] for p in results.column("cosine", **c)] for c in results.configs}
    theory = {c["connection"]: predicted(c)[-1] for c in results.configs}
    numbers: dict[str, Any] = {kind: kept[kind] for kind in kept}
    numbers.update({f"{kind}, predicted": value for kind, value in theory.items()})
    met = min(kept["residual"]) > 10 * max(0.0, *kept["plain"])
    return met, numbers, mann_whitney(kept["residual"], kept["plain"])


def _delayed(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    """Decide by the ratio of a seed's two networks, over layers at which both cosines are above the noise."""
    kept, theory = dict[str, list[float]](), dict[str, float]()
    for config in results.configs:
        profiles, kind = results.column("cosine", **config), config["connection"]
        kept[kind] = [fmean(profile[SHALLOW : DEEP + 1]) for profile in profiles]
        theory[kind] = fmean(predicted(config)[SHALLOW : DEEP + 1])
    ratios = [one / max(other, 1e-9) for one, other in zip(kept["residual"], kept["plain"], strict=True)]
    known = theory["residual"] / theory["plain"]
    numbers: dict[str, Any] = {f"{kind}, mean of layers {SHALLOW} to {DEEP}": values for kind, values in kept.items()}
    numbers.update({"residual over plain": ratios, "residual over plain, predicted": known})
    ends = [
        predicted(next(c for c in results.configs if c["connection"] == kind))[-1] for kind in ("residual", "plain")
    ]
    numbers[f"predicted after {results.configs[0]['depth']} layers"] = ends[0] / ends[1]
    interval = student_interval(ratios, "residual over plain")
    if min(kept["plain"]) < NOISE:
        return Undecided(f"a plain network's cosine is below {NOISE:g}, to which cosines are known"), numbers, interval
    return all(ratio > 1 and abs(_octaves(ratio, known)) <= 0.5 for ratio in ratios), numbers, interval


def _white(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether plain networks end as white noise; the interval is of each seed's largest value."""
    farthest, numbers = [-1.0] * len(results.seeds), dict[str, Any]()
    for config in results.configs:
        rows = results.column("lag_one", **config)
        numbers[f"{_kind(config)}: one hidden layer"] = [row[0] for row in rows]
        numbers[f"{_kind(config)}: {config['depth']} layers more"] = last = [row[-1] for row in rows]
        farthest = list(map(max, farthest, last))
    return max(farthest) < 0.2, numbers, student_interval(farthest, "the seeds' largest autocorrelation")


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
        "with depth”, as 1/2^L.", "plain networks without normalisation, unrelated inputs: mean factor per layer over "
        f"layers {FIRST} to {LAST}, where 2^-L is above the noise as well, at most 0.6 in every seed; not decided "
        "unless it is so in the control, plain networks with batch normalisation", ABSTRACT, _exponential,
        {**UNRELATED, "connection": "plain"}, paper_value="1/2^L",
        correction="The first layer halves it. Then the signals become alike and a layer's factor rises towards 1: in "
        "the closed form it is 1 - 3/l after many layers, and the cosine of wide networks falls as L^-3, a power.",
    ),
    Claim(
        "residual networks decay sublinearly", "“The gradients in architectures with skip-connections are far more "
        "resistant to shattering, decaying sublinearly.”", "residual networks with batch normalisation, unrelated "
        "inputs: exponent of the cosine in depth, from 5 layers on, between -1 and 0 in every seed, and so Student's "
        "95 % interval", ABSTRACT, _sublinear, {**NORMED, "connection": "residual"},
    ),
    Claim(
        "residual networks decay as 1/sqrt(L)", "With skips and batch normalisation the correlation of gradients "
        "decays as 1/sqrt(L).", "the same networks and exponent: Student's 95 % interval over the seeds lies within "
        f"-0.5 +- {HALF:g}; not decided where it reaches over one of these bounds", ABSTRACT, _root,
        {**NORMED, "connection": "residual"}, paper_value="exponent -1/2",
        correction="The exponent tends to -0.73: batch normalisation takes the mean of the branches' outputs from the "
        "stream, which therefore grows by 1 - 1/pi a block and not by 1.",
    ),
    Claim(
        "skips resist", FAR, "networks with batch normalisation, unrelated inputs: cosine after the last layer in "
        "every residual seed more than 10 times that in every plain seed", ABSTRACT, _resistant, NORMED,
    ),
    Claim(
        "skips resist without normalisation", "Without normalisation a skip delays the same power law: unrelated "
        "inputs' gradients keep 4.2 times the cosine at 10 layers, 5.0 times at 15.", "networks without normalisation: "
        f"mean cosine over layers {SHALLOW} to {DEEP} larger with skips than without in every seed, and the ratio "
        f"within half an octave of the closed form; not decided where a plain network's is below {NOISE:g}, the noise",
        "this project's closed form; the paper has no number for networks without normalisation", _delayed,
        {**UNRELATED, "normalised": False}, paper_value="far more resistant",
    ),
    Claim(
        "plain gradients are white noise", "The gradients of deep plain networks “resemble white noise”.",
        "autocorrelation of the derivative between neighbours of 256 inputs on a line below 0.2 after the last layer, "
        "in every seed, in plain networks with and without batch normalisation", ABSTRACT, _white,
        {"measures": "line", "connection": "plain"},
        correction="With batch normalisation they do. Without it neighbours' signals become alike while their "
        "gradients come apart, and the gradient loses its smoothness slowly.",
    ),
    Claim(
        "residual gradients lie between", "With batch normalisation, gradients of residual networks lie between those "
        "of a shallow network and white noise.", "autocorrelation of neighbours after the last layer: every residual "
        "seed at least 0.3 above every plain one, and below every network of one hidden layer", ABSTRACT, _between,
        {"measures": "line", "normalised": True},
    ),
)  # fmt: skip


def _cosine_series(results: Results, config: Mapping[str, Any]) -> list[Series]:
    """Draw the cosine of every seed, its prediction, and how far the seeds are from that, down to SHOWN."""
    theory, kind = predicted(config), _kind(config)
    depths = range(1, len(theory))

    def points(values: Sequence[float]) -> tuple[list[int], list[float]]:
        shown = [depth for depth in depths if values[depth] >= SHOWN]
        return shown, [values[depth] for depth in shown]

    profiles = [values["cosine"] for _, values in results.where(**config)]
    lines = [*measured_series(results, config, kind, lambda values: points(values["cosine"])),
             Series(f"{kind}, predicted", "predicted", *points(theory), kind)]  # fmt: skip
    if profiles and config["connection"] == "plain":  # the smaller cosines, and enough lines
        noise = [fmean((p[d] - theory[d]) ** 2 for p in profiles) ** 0.5 for d in range(len(theory))]
        lines.append(Series(f"{kind}, noise", "reference", *points(noise), kind))
    return lines


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
        Figure("cosine_by_depth", "Gradients of unrelated inputs", "Mean cosine over pairs of inputs: every seed, the "
               "closed form, and the noise of plain networks, the seeds' rms distance from it. Smaller values than "
               f"{SHOWN:g}, and negative ones, are not drawn.", Axis("layers", "log"),
               Axis("cosine of the two gradients", "log"), tuple(cosines)),
        Figure("neighbours_by_depth", "Neighbours on a line", "Autocorrelation of the derivative between neighbours of "
               "256 inputs from -2 to 2; every seed. 1: a smooth function; 0: white noise.",
               Axis("layers after the first"), Axis("autocorrelation at lag 1"), tuple(neighbours)),
        Figure("gradient_on_a_line", "One neuron's derivative along the line", "After the last layer, of the first "
               "seed, relative to its root mean square.", Axis("input"), Axis("derivative"), tuple(traces)),
    ]  # fmt: skip
