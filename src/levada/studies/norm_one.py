"""R2: weights of norm one do not keep a signal; it depends on the norm, and only orthogonal weights suit them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10, prod
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from levada.study import Axis, Cell, Claim, Cost, Figure, Results, Series, Settings, Statistic, Study, measured_series
from levada.study.statistics import geometric_mean, student_interval
from levada.theory import gaussian_gain, gaussian_spectral_norm, largest_squared_singular_value

__all__ = ["STUDY"]

# How the weights are drawn, which of their measures is set, and to what.
CELLS: tuple[tuple[str, str, float], ...] = (
    ("Gaussian", "variance", 1.0), ("Gaussian", "spectral", 1.0), ("Gaussian", "spectral", 1.5),
    ("Gaussian", "spectral", 2.5), ("Gaussian", "frobenius", 1.0), ("orthogonal", "spectral", 1.0),
)  # fmt: skip
NAMES = {"variance": "n times the variance", "spectral": "spectral norm", "frobenius": "Frobenius norm"}
TOLERANCE, EXACT = 0.15, 1e-12  # decades; of orthogonal weights
WAYS = ("forward", "backward")


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell per kind of weights."""
    shape = {"depth": settings["depth"], "dim": settings["dim"], "version": 2}
    return [
        Cell({"weights": w, "normalised": n, "value": v, "keeps_length": w == "orthogonal" or n == "variance", **shape},
             seeds) for w, n, v in CELLS
    ]  # fmt: skip


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Send a random vector through the chain, and one back through its transpose, in float64."""
    return [_measure(config, seed) for seed in seeds]


def _measure(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    # Each cell has numbers of its own: scaled copies of one chain would be one measurement, not five.
    own = CELLS.index((config["weights"], config["normalised"], config["value"]))
    dim, generator = config["dim"], torch.Generator().manual_seed(len(CELLS) * seed + own)
    weights = [_weights(config, generator) for _ in range(config["depth"])]
    signal, gradient = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    product = torch.eye(dim, dtype=torch.float64)
    for weight in weights:
        product = weight @ product
    values = torch.linalg.svdvals(product)
    return {
        "forward": _gains(weights, signal),
        "backward": _gains([weight.T for weight in reversed(weights)], gradient),
        "spectral": [float(torch.linalg.matrix_norm(weight, 2)) for weight in weights],
        "frobenius": fmean(float(weight.norm()) for weight in weights),
        "largest": float(values[0]),
        "median": float(values[dim // 2]),
        "smallest": float(values[-1]),
    }


def _weights(config: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    dim, value = int(config["dim"]), float(config["value"])
    drawn: Tensor = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    if config["weights"] == "orthogonal":
        basis, triangle = torch.linalg.qr(drawn)
        drawn, scale = basis * triangle.diagonal().sign(), value  # by the signs the draw is uniform
    elif config["normalised"] == "variance":
        scale = float((value / dim) ** 0.5)
    else:
        size = torch.linalg.matrix_norm(drawn, 2) if config["normalised"] == "spectral" else drawn.norm()
        scale = value / float(size)
    return scale * drawn


def _gains(weights: Sequence[Tensor], vector: Tensor) -> list[float]:
    """Return the vector's norm after each of the layers, over that at the start."""
    norms = [float(vector.norm())]
    for weight in weights:
        vector = weight @ vector
        norms.append(float(vector.norm()))
    return [norm / norms[0] for norm in norms]


def _predicted(config: Mapping[str, Any], wide: bool = True) -> float:
    """Return a layer's factor, in the limit of great width or at this one."""
    if config["weights"] == "orthogonal":
        return float(config["value"])
    if config["normalised"] == "variance":
        return float(config["value"] ** 0.5)
    if config["normalised"] == "spectral" and not wide:
        return float(config["value"] / gaussian_spectral_norm(config["dim"]))
    return float(config["value"] * gaussian_gain(config["normalised"], config["dim"]))


def _name(config: Mapping[str, Any]) -> str:
    return f"{config['weights']}, {NAMES[config['normalised']]} {config['value']:g}"


def _ratios(results: Results, way: str, **fields: Any) -> list[float]:
    return [gains[-1] for gains in results.column(way, **fields)]


def _decades(results: Results) -> list[float]:
    """Return each seed's gain over the depth in decades at a spectral norm that is set, the mean of both ways."""
    columns = [_ratios(results, way, normalised="spectral") for way in WAYS]
    return [fmean(map(log10, seed)) for seed in zip(*columns, strict=True)]


def _keeps(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether norms of one keep the signal; the interval is that of spectral norm 1."""
    met, numbers = True, dict[str, Any]()
    for config in results.configs:
        for way in WAYS:
            numbers[f"{_name(config)}: {way}"] = ratios = _ratios(results, way, **config)
            met = met and all(0.5 <= ratio <= 2 for ratio in ratios)
    gains = _decades(results)
    return met, numbers, student_interval(gains, "the seeds' gains at spectral norm 1, decades")


def _grows(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether norms above one make the signal grow; the interval is that of the seeds' gains."""
    met, numbers = True, dict[str, Any]()
    for config in results.configs:
        bounds = [prod(norms) for norms in results.column("spectral", **config)]
        numbers[f"{_name(config)}: product of the norms"] = geometric_mean(bounds)
        for way in WAYS:
            numbers[f"{_name(config)}: {way}"] = ratios = _ratios(results, way, **config)
            met = met and all(ratio > 2 for ratio in ratios)
    return met, numbers, student_interval(_decades(results), "the seeds' gains, decades")


def _law(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide by each cell's mean over the seeds; the interval is that of the seeds, Gaussian cells together."""
    numbers: dict[str, Any] = {}
    means, gaussian, exact = list[float](), list[list[float]](), 0.0
    for config in results.configs:
        depth, factor = config["depth"], _predicted(config)
        numbers[f"{_name(config)}: predicted"] = factor**depth
        if _predicted(config, wide=False) != factor:
            numbers[f"{_name(config)}: predicted at this width"] = _predicted(config, wide=False) ** depth
        for way in WAYS:
            ratios = _ratios(results, way, **config)
            numbers[f"{_name(config)}: {way}"] = geometric_mean(ratios)
            apart = [log10(ratio / factor**depth) for ratio in ratios]
            means.append(fmean(apart))
            if config["weights"] == "orthogonal":
                exact = max(exact, *(abs(ratio - 1) for ratio in ratios))
            else:
                gaussian.append(apart)
    seeds = [fmean(seed) for seed in zip(*gaussian, strict=True)]
    numbers["largest deviation of a cell, decades"] = max(map(abs, means))
    numbers["largest deviation of a single seed, decades"] = max(abs(value) for apart in gaussian for value in apart)
    numbers["orthogonal, largest deviation from 1"] = exact
    met = max(map(abs, means)) <= TOLERANCE and exact <= EXACT
    return met, numbers, student_interval(seeds, "the seeds' mean deviations, Gaussian weights, decades")


def _directions(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether only orthogonal weights keep all directions; the interval is of the Gaussian largest gain."""
    numbers, met, gaussian = dict[str, Any](), True, list[float]()
    for config in results.configs:
        largest, smallest = (results.column(name, **config) for name in ("largest", "smallest"))
        numbers[f"{_name(config)}: largest singular value"] = largest
        if config["weights"] == "orthogonal":
            met = met and all(abs(value - 1) <= EXACT for value in [*largest, *smallest])
            continue
        numbers[f"{_name(config)}: median singular value"] = median = results.column("median", **config)
        numbers["largest singular value of wide matrices"] = largest_squared_singular_value(config["depth"]) ** 0.5
        met, gaussian = met and min(largest) > 2 and max(median) < 0.5, largest
    return met, numbers, student_interval(gaussian, "the largest singular value, variance 1/n")


TOLD = "common in essays and tutorials; see Pascanu et al. 2013, arXiv 1211.5063, section 2.1"
BOTH = "forward (the vector) and backward (the gradient)"
CLAIMS = (
    Claim(
        "norm one keeps the signal", "In a linear chain, weights of norm one keep the signal; a smaller norm shrinks "
        "it, a larger one makes it grow.", f"gain over the depth between 0.5 and 2, {BOTH}, in every seed, for "
        "Gaussian weights of spectral norm 1 and of Frobenius norm 1", TOLD, _keeps,
        {"weights": "Gaussian", "normalised": ("spectral", "frobenius"), "value": 1.0},
        correction="So it is for numbers, not for matrices. A spectral norm of 1 halves a typical vector in each "
        "layer, a Frobenius norm of 1 divides it by the root of the width; a variance of 1/n keeps it, and has a "
        "spectral norm of 2.",
    ),
    Claim(
        "a norm above one makes it grow", "Weights of norm above one make signal and gradient explode.",
        f"gain over the depth above 2, {BOTH}, in every seed, for Gaussian weights of spectral norm 1.5", TOLD, _grows,
        {"weights": "Gaussian", "normalised": "spectral", "value": 1.5},
        paper_value="a largest singular value above 1 is necessary for exploding gradients, not sufficient",
        correction="It is necessary and not sufficient: the spectral norm is what one direction gains, and a typical "
        "one gains half of that.",
    ),
    Claim(
        "the gain is known", "A wide Gaussian matrix changes the length of a typical vector by the root of n times the "
        "variance of its entries: 1/2 at spectral norm 1, n^(-1/2) at Frobenius norm 1; an orthogonal one keeps it.",
        f"|log10(measured / predicted)| <= {TOLERANCE} for the gain over the depth, mean over the seeds, {BOTH}, in "
        f"each of {len(CELLS)} cells; for orthogonal weights |gain - 1| <= {EXACT:g} in every seed",
        "Saxe, McClelland and Ganguli 2014, arXiv 1312.6120; the spectral norm: Johnstone 2001", _law,
    ),
    Claim(
        "only orthogonal weights keep every direction", "Orthogonal weights have norm one in every sense; a variance "
        "of 1/n keeps lengths on average only.", f"of the product of all layers, in every seed: orthogonal, all "
        f"singular values within {EXACT:g} of 1; Gaussian of variance 1/n, the largest above 2 and the median below "
        "0.5", "Saxe et al. 2014, arXiv 1312.6120; Pennington et al. 2017, arXiv 1711.04735", _directions,
        {"weights": ("Gaussian", "orthogonal"), "keeps_length": True},
    ),
)  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the signal's size by depth, and how far a layer's factor is from the norm that was set."""
    lines: list[Series] = []
    depth = results.configs[0]["depth"]
    layers = list(range(depth + 1))
    for config in results.configs:
        name, factor = _name(config), _predicted(config)
        lines += measured_series(results, config, name, lambda values: (layers, values["forward"]))
        lines.append(Series(f"{name}, predicted", "predicted", layers, [factor**layer for layer in layers], name))
    points: list[Series] = []
    for config in results.configs:
        own = measured_series(
            results, config, _name(config), lambda v: ([fmean(v["spectral"])], [v["backward"][-1] ** (1 / depth)])
        )
        points += own
    told = [0.05, 4.0]
    points.append(Series("as told: factor = norm", "bound", told, told))
    points.append(Series("Gaussian, wide: half of it", "predicted", told, [norm / 2 for norm in told]))
    return [
        Figure("signal_by_depth", "A signal in a chain of matrices", "Every seed, and the prediction of wide matrices. "
               "The legend says which measure of the weights was set, and to what.", Axis("layer"),
               Axis("length of the vector over that at the input", "log"), tuple(lines)),
        Figure("factor_by_norm", "What a spectral norm says of a layer", "One point per seed: the gradient's mean "
               "factor per layer.", Axis("spectral norm", "log"), Axis("factor per layer", "log"), tuple(points)),
    ]  # fmt: skip


STUDY = Study(
    name="R2", slug="norm_one", title="Norm one is the wrong condition",
    question="Do weights of norm one keep a signal and its gradient over depth, and in which norm?",
    answer="Of Gaussian matrices neither: over 20 layers of width 256 spectral norm 1 leaves about 10^-6, Frobenius "
    "norm 1 about 10^-24; variance 1/n, of spectral norm 2, keeps lengths to .65 to 1.4, and only orthogonal ones "
    "keep every direction.",
    method="A random vector passes 20 random matrices without activations, and another one their transposes, in "
    "float64. The matrices are Gaussian, scaled to a given variance, spectral or Frobenius norm, or orthogonal. The "
    "change of length is compared with the closed form of wide matrices, and all singular values of the product are "
    "computed.",
    sources=("Pascanu et al. 2013, arXiv 1211.5063, section 2.1", "Saxe et al. 2014, arXiv 1312.6120",
             "Pennington et al. 2017, arXiv 1711.04735"),
    settings={"seeds": 10, "depth": 20, "dim": 256},
    costs={"smoke": Cost(0.0005), "small": Cost(0.0029, measured=True), "full": Cost(0.7)},
    scales={"smoke": {"seeds": 2, "dim": 64}, "full": {"seeds": 20, "dim": 1024}},
    configurations=configurations, run=run, claims=lambda settings: CLAIMS, figures=figures,
    notes=("At width 256 the spectral norm of variance 1/n is 1.98, not 2, so that a norm of 1 leaves 1.2e-6 after 20 "
           "layers where wide matrices leave 2^-20; the prediction at this width is among the numbers.",
           "Each cell draws matrices of its own. In the run before a review the Gaussian cells were one chain, scaled; "
           "the criteria are the same."),
)  # fmt: skip
