"""R1: the law of gradient decay, its counter-examples, and what residual connections make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10, prod
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import require_at_least
from levada.blocks import FullyConnected
from levada.connections import Plain, Residual
from levada.stack import Stack
from levada.study import Axis, Cell, Claim, Cost, Figure, Results, Series, Settings, Statistic, Study, measured_series
from levada.study.data import Dataset, mnist, standard_digits
from levada.study.statistics import geometric_mean, sign_test, student_interval
from levada.theory import coherent_residual_gradient, default_variances, propagate, weight_free_bound

__all__ = ["STUDY"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}
DEFAULT = "PyTorch's default"
# Connection, activation, and the weights' variance times the width.
CELLS: tuple[tuple[str, str, float | str], ...] = (
    ("plain", "sigmoid", 1.0), ("plain", "sigmoid", DEFAULT), ("plain", "sigmoid", 16.0), ("plain", "tanh", DEFAULT),
    ("plain", "tanh", 1.0), ("plain", "relu", 2.0), ("plain", "relu", DEFAULT), ("residual", "sigmoid", 1.0),
    ("residual", "tanh", 1.0), ("residual", "relu", 2.0), ("residual", "relu", DEFAULT),
)  # fmt: skip
TOLERANCE = 0.15  # decades


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell per connection, activation and initialisation, all seeds in it: each takes milliseconds."""
    shape = {key: settings[key] for key in ("depth", "dim", "batch_size")} | {"version": 1}
    return [Cell({"connection": c, "activation": a, "weight_variance": v, **shape}, seeds) for c, a, v in CELLS]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Measure the gradient at every boundary of the layers, in float64, and predict it from what enters at the ends."""
    data = mnist()
    return [_measure(config, seed, data) for seed in seeds]


def _measure(config: Mapping[str, Any], seed: int, data: Dataset) -> dict[str, Any]:
    dim, num_pixels = config["dim"], data.train_inputs[0].numel()
    require_at_least("R1", "the number of digits", len(data.train_inputs), config["batch_size"], "Use a smaller batch.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = torch.randperm(len(data.train_inputs))[: config["batch_size"]]
        stack = _stack(config).double()
        first = torch.randn(num_pixels, dim, dtype=torch.float64) / num_pixels**0.5
        last = torch.randn(dim, 10, dtype=torch.float64) / dim**0.5
    images = standard_digits(data.train_inputs[chosen].flatten(1), torch.float64)
    states = [(images @ first).requires_grad_()]
    for layer in stack.layers:
        states.append(layer(states[-1]))
    loss = functional.cross_entropy(states[-1] @ last, data.train_targets[chosen])
    gradients = torch.autograd.grad(loss, states)
    norms = torch.stack([gradient.norm() for gradient in gradients])
    top, state = gradients[-1], states[-1].detach()
    alignment = float((((top * state).sum(1) / state.norm(dim=1)).norm() / norms[-1]).square())
    sigmoids = (config["connection"], config["activation"]) == ("plain", "sigmoid")
    weights = [weight.detach() for weight in stack.parameters() if weight.dim() == 2 and sigmoids]
    return {
        "gradient": (norms / norms[-1]).tolist(),
        "predicted": _predict(config, states[0].detach(), alignment).tolist(),
        "alignment": alignment,
        "product_of_norms": prod(float(torch.linalg.matrix_norm(weight, 2)) for weight in weights),
    }


def _stack(config: Mapping[str, Any]) -> Stack:
    dim, variance = config["dim"], config["weight_variance"]
    blocks = [FullyConnected(dim, ACTIVATIONS[config["activation"]]) for _ in range(config["depth"])]
    for block in blocks if variance != DEFAULT else []:
        nn.init.normal_(block.linear.weight, std=(variance / dim) ** 0.5)
        nn.init.zeros_(block.linear.bias)
    return Stack(blocks, Plain if config["connection"] == "plain" else Residual, dim=dim)


def _predict(config: Mapping[str, Any], state: Tensor, alignment: float) -> Tensor:
    """Wide-network theory from the measured mean square of the first state, layer by layer: no fixed point."""
    default = config["weight_variance"] == DEFAULT
    weight, bias = default_variances(config["dim"]) if default else (config["weight_variance"], 0.0)
    square, activation, depth = float(state.square().mean()), config["activation"], config["depth"]
    if config["connection"] == "plain":
        return propagate(activation, weight, bias, depth, weight * square + bias).cumulative
    return coherent_residual_gradient(activation, weight, bias, depth, square, float(state.mean()), alignment)


def _ratios(results: Results, column: str = "gradient", **fields: Any) -> list[float]:
    return [profile[0] for profile in results.column(column, **fields)]


def _name(config: Mapping[str, Any]) -> str:
    variance = config["weight_variance"]
    return f"{config['connection']} {config['activation']}, {variance if variance == DEFAULT else f'{variance:g}/n'}"


def _law(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    means, singles = [], []
    for config in results.configs:
        measured, predicted = _ratios(results, **config), _ratios(results, "predicted", **config)
        singles += (apart := [log10(m / p) for m, p in zip(measured, predicted, strict=True)])
        means.append(fmean(apart))
        numbers[f"{_name(config)}: measured"] = geometric_mean(measured)
        numbers[f"{_name(config)}: predicted"] = geometric_mean(predicted)
    numbers["largest deviation of a cell, decades"] = max(map(abs, means))
    numbers["largest deviation of a single seed, decades"] = max(map(abs, singles))
    return max(map(abs, means)) <= TOLERANCE, numbers, student_interval(means, "the cells' deviations, decades")


def _below(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether the gradient is below 0.25^depth; the statistic counts seeds of the cell farthest above."""
    bound = weight_free_bound(results.configs[0]["depth"])
    numbers: dict[str, Any] = {"0.25^depth": bound}
    above = 0
    for config in results.configs:
        ratios = _ratios(results, **config)
        above = max(above, sum(ratio >= bound for ratio in ratios))
        numbers[_name(config)] = ratios
        if config["activation"] == "sigmoid":
            products = results.column("product_of_norms", **config)
            numbers[f"{_name(config)}: bound with the weights"] = [bound * product for product in products]
    return above == 0, numbers, sign_test(above, len(results.seeds))


def _explodes(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    ratios, least = _ratios(results), 2 ** (results.configs[0]["depth"] / 2)
    numbers = {"measured": ratios, "geometric mean": geometric_mean(ratios), "2^(depth/2)": least}
    return min(ratios) >= least, numbers, sign_test(sum(ratio >= least for ratio in ratios), len(ratios))


RATIO, PASCANU = "gradient at the input over that at the output", "Pascanu et al. 2013, arXiv 1211.5063, section 2.1"
CLAIMS = (
    Claim(
        "gradient decay is a law", "A layer multiplies the gradient's variance by that of the weights times the "
        "mean squared slope.", f"|log10(measured / predicted)| <= {TOLERANCE} "
        f"for the {RATIO}, mean over the seeds, in each of {len(CELLS)} cells. Predictions are given the mean square "
        "of the input state and, for residual networks, its mean and the alignment of the loss's gradient with the "
        "last state, measured in the same network; nothing else of it, and nothing is fitted",
        "Glorot and Bengio 2010; Schoenholz et al. 2017, arXiv 1611.01232", _law,
    ),
    Claim(
        "below 0.25^n", "The sigmoid's derivative is at most 0.25, so after n layers the gradient is below 0.25^n.",
        f"{RATIO} below 0.25^depth in every plain sigmoid cell and seed", f"common in tutorials; see {PASCANU}", _below,
        {"connection": "plain", "activation": "sigmoid"}, paper_value="0.25^20 = 9.09e-13",
        correction="0.25^n forgets the weights and bounds nothing. The bound is 0.25^n times the product of the "
        "weights' spectral norms: with weights of variance 16/n the gradient is far above 0.25^n.",
    ),
    Claim(
        "tanh like sigmoid", "The derivatives of sigmoid and tanh are at most 0.25, so the gradient shrinks fourfold.",
        f"{RATIO} below 0.25^depth in every plain tanh cell and seed", f"common in tutorials; see {PASCANU}", _below,
        {"connection": "plain", "activation": "tanh"}, paper_value="largest slope: 1 for tanh, 1/4 for sigmoid",
        correction="The slope of tanh is 1 at zero, and the weights count: with 1/n the gradient stays within a decade "
        "of the output's.",
    ),
    Claim(
        "residual networks explode", "Without normalisation or scaling, residual networks explode with depth.",
        f"{RATIO} at least 2^(depth/2) in every seed, for ReLU from He's initialisation",
        "Zhang, Dauphin and Ma 2019, arXiv 1901.09321", _explodes,
        {"connection": "residual", "activation": "relu", "weight_variance": 2.0},
        correction="More than 2^(depth/2): the means of ReLU's outputs add up, and signal and gradient align.",
    ),
)  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the gradient by depth, and what was measured against what was predicted."""
    lines, points = [], []
    depth = results.configs[0]["depth"]
    layers = list(range(depth + 1))
    for config in results.configs:
        name, predicted = _name(config), results.column("predicted", **config)
        lines += measured_series(results, config, name, lambda values: (layers, values["gradient"]))
        points += measured_series(results, config, name, lambda v: (v["predicted"][:1], v["gradient"][:1]))
        if predicted:
            mean = [geometric_mean(column) for column in zip(*predicted, strict=True)]
            lines.append(Series(f"{name}, predicted", "predicted", layers, mean, name))
    lines.append(Series("0.25^n, without the weights", "bound", [0, depth], [weight_free_bound(depth), 1.0]))
    points.append(Series("measured = predicted", "reference", [1e-18, 1e5], [1e-18, 1e5]))
    return [
        Figure("gradient_by_depth", "Gradient by depth", "Every seed, and the prediction; the input is at the left, "
               "the output at the right. Dotted: the bound that forgets the weights.", Axis("layer"),
               Axis("gradient norm relative to the output's", "log"), tuple(lines)),
        Figure("measured_and_predicted", "Measured and predicted", f"The {RATIO}; one point per seed.",
               Axis("predicted", "log"), Axis("measured", "log"), tuple(points)),
    ]  # fmt: skip


STUDY = Study(
    name="R1", slug="gradient_decay", title="The law of gradient decay",
    question="How fast does the gradient shrink or grow with depth, and can one say so beforehand?",
    method="Untrained networks of 20 layers read a batch of MNIST, in float64, with three activations and several "
           "variances of the weights, plain and residual. The gradient is measured at every layer. It is compared "
           "with what theory says of the initialisation and of what enters at the two ends, and with 0.25^n.",
    sources=("Glorot and Bengio 2010", PASCANU, "Schoenholz et al. 2017, arXiv 1611.01232"),
    settings={"seeds": 5, "depth": 20, "dim": 256, "batch_size": 64},
    scales={"smoke": {"seeds": 2}, "full": {"seeds": 10, "dim": 1024}},
    costs={"smoke": Cost(2.6 / 3600, measured=True), "small": Cost(0.00118, measured=True), "full": Cost(0.04)},
    configurations=configurations, run=run, claims=lambda settings: CLAIMS, figures=figures,
    notes=("Untrained networks on a batch of MNIST, in float64.",
           "Predictions know, besides the initialisation, what enters at the two ends of each network: the mean square "
           "of the input state; for residual networks also its mean, and which share of the squared gradient at the "
           "loss lies along the last state. No gradient between the ends, and no other measurement, goes into them."),
    answer="By the weights' variance times the mean squared slope a layer: in untrained networks of 20 layers "
           "that tells the ratio of first to last gradient to 0.08 decades in each of eleven kinds; 0.25^n is no "
           "bound.",
)  # fmt: skip
