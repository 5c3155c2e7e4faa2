"""R1: the law of gradient decay, its counter-examples, and what residual connections make of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada.blocks import FullyConnected
from levada.connection import Stack
from levada.connections import Plain, Residual
from levada.study import Axis, Cell, Claim, Figure, Results, Series, Settings, Statistic, Study
from levada.study.data import mnist
from levada.study.statistics import geometric_mean, sign_test
from levada.theory import default_variances, propagate, weight_free_bound
from levada.theory.coherence import coherent_residual_gradient

__all__ = ["STUDY"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}
DEFAULT = 0.0  # stands for what nn.Linear does by itself
CELLS = (
    ("plain", "sigmoid", 1.0), ("plain", "sigmoid", DEFAULT), ("plain", "sigmoid", 16.0), ("plain", "tanh", DEFAULT),
    ("plain", "tanh", 1.0), ("plain", "relu", 2.0), ("plain", "relu", DEFAULT), ("residual", "sigmoid", 1.0),
    ("residual", "tanh", 1.0), ("residual", "relu", 2.0), ("residual", "relu", DEFAULT),
)  # fmt: skip
TOLERANCE = 0.15  # decades


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell per connection, activation and initialisation, all seeds in it: each takes milliseconds."""
    shape = {key: settings[key] for key in ("depth", "dim", "batch_size")}
    return [
        Cell({"connection": c, "activation": a, "weight_variance": w, **shape, "version": 1}, seeds) for c, a, w in CELLS
    ]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Measure the gradient at every boundary of the layers, in float64, and predict it from the two ends."""
    data = mnist()
    return [_measure(config, seed, data.train_inputs, data.train_targets) for seed in seeds]


def _measure(config: Mapping[str, Any], seed: int, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    dim, depth = config["dim"], config["depth"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = torch.randperm(len(inputs))[: config["batch_size"]]
        stack = _build(config).double()
        first = torch.randn(inputs[0].numel(), dim, dtype=torch.float64) / inputs[0].numel() ** 0.5
        last = torch.randn(dim, 10, dtype=torch.float64) / dim**0.5
    images = (inputs[chosen].flatten(1).double() / 255 - 0.1307) / 0.3081
    states = [(images @ first).requires_grad_()]
    for layer in stack.layers:
        states.append(layer(states[-1]))
    loss = functional.cross_entropy(states[-1] @ last, targets[chosen])
    gradients = torch.autograd.grad(loss, states)
    norms = torch.stack([gradient.norm() for gradient in gradients])
    top, state = gradients[-1], states[-1].detach()
    along = ((top * state).sum(1) / state.norm(dim=1)).norm() / top.norm()
    weights = [layer.branch.linear.weight.detach() for layer in stack.layers]
    return {
        "gradient": (norms / norms[-1]).tolist(),
        "predicted": _predict(config, states[0].detach(), float(along**2)).tolist(),
        "alignment": float(along**2),
        "spectral_norms": [float(torch.linalg.matrix_norm(weight, 2)) for weight in weights],
        "depth": depth,
    }


def _build(config: Mapping[str, Any]) -> Stack:
    dim, variance = config["dim"], config["weight_variance"]
    blocks = [FullyConnected(dim, ACTIVATIONS[config["activation"]]) for _ in range(config["depth"])]
    for block in blocks if variance != DEFAULT else []:
        nn.init.normal_(block.linear.weight, std=(variance / dim) ** 0.5)
        nn.init.zeros_(block.linear.bias)
    return Stack(blocks, Plain if config["connection"] == "plain" else Residual, dim=dim)


def _predict(config: Mapping[str, Any], state: Tensor, alignment: float) -> Tensor:
    """Wide-network theory from the measured mean square of the first state, layer by layer: no fixed point."""
    own = config["weight_variance"], 0.0
    weight, bias = default_variances(config["dim"]) if own[0] == DEFAULT else own
    square, activation, depth = float(state.square().mean()), config["activation"], config["depth"]
    if config["connection"] == "plain":
        return propagate(activation, weight, bias, depth, weight * square + bias).cumulative
    return coherent_residual_gradient(activation, weight, bias, depth, square, float(state.mean()), alignment)


def _ratios(results: Results, **fields: Any) -> list[float]:
    return [gradient[0] for gradient in results.column("gradient", **fields)]


def _name(config: Mapping[str, Any]) -> str:
    variance = config["weight_variance"]
    start = "PyTorch's default" if variance == DEFAULT else f"variance {variance:g}"
    return f"{config['connection']} {config['activation']}, {start}"


def _law(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    worst_mean, worst_seed = 0.0, 0.0
    for config in results.configs:
        measured = _ratios(results, **config)
        predicted = [prediction[0] for prediction in results.column("predicted", **config)]
        apart = [log10(m / p) for m, p in zip(measured, predicted, strict=True)]
        numbers[_name(config)] = {"measured": geometric_mean(measured), "predicted": geometric_mean(predicted)}
        worst_mean = max(worst_mean, abs(sum(apart) / len(apart)))
        worst_seed = max(worst_seed, *map(abs, apart))
    numbers |= {"largest deviation of a mean, decades": worst_mean, "of a single seed, decades": worst_seed}
    return worst_mean <= TOLERANCE, numbers, Statistic("largest deviation of a cell's mean, decades", worst_mean)


def _below(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Is the gradient below 0.25^depth in every cell and seed? Counts the seeds of the cell that is farthest above."""
    depth = results.configs[0]["depth"]
    bound = weight_free_bound(depth)
    ratios = {_name(config): _ratios(results, **config) for config in results.configs}
    norms = {_name(c): results.column("spectral_norms", **c) for c in results.configs}
    with_weights = {
        name: [bound * functools.reduce(float.__mul__, seed, 1.0) for seed in found] for name, found in norms.items()
    }
    above = max(sum(ratio >= bound for ratio in found) for found in ratios.values())
    numbers = {"0.25^depth": bound, "measured": ratios, "0.25^depth times the weights' norms": with_weights}
    return above == 0, numbers, sign_test(above, len(results.seeds))


def _explodes(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    ratios = _ratios(results)
    least = 2 ** (results.configs[0]["depth"] / 2)
    numbers = {"measured": ratios, "geometric mean": geometric_mean(ratios), "2^(depth/2)": least}
    return min(ratios) >= least, numbers, sign_test(sum(ratio >= least for ratio in ratios), len(ratios))


CLAIMS = (
    Claim(
        "gradient decay is a law",
        "Each layer multiplies the back-propagated gradient's variance by the weights' variance times the mean squared "
        "slope; the product over the depth makes it vanish or explode.",
        f"|log10 measured - log10 predicted| <= {TOLERANCE} for the gradient at the input over that at the output, geometric "
        "mean over the seeds, in each of the cells; the prediction starts from the measured input and is not fitted.",
        "Glorot and Bengio 2010, section 4.2; Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, arXiv 1611.01232",
        _law,
    ),
    Claim(
        "below 0.25^n",
        "The sigmoid's derivative is at most 0.25, so after n layers the gradient is below 0.25^n.",
        "Gradient at the input over that at the output below 0.25^depth, in every sigmoid cell without skips and seed.",
        "Common in tutorials; the condition with the weights: Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063, section 2.1",
        _below,
        needs=lambda config: config["connection"] == "plain" and config["activation"] == "sigmoid",
        paper_value="0.25^20 = 9.09e-13",
        correction="0.25^n forgets the weights and bounds nothing. The bound is 0.25^n times the product of the weights' "
        "spectral norms: with weights of variance 16/n the gradient is eight decades above 0.25^20.",
    ),
    Claim(
        "tanh like sigmoid",
        "Sigmoid or tanh: their derivatives are at most 0.25, so the gradient shrinks at least fourfold per layer.",
        "Gradient at the input over that at the output below 0.25^depth, in every tanh cell without skips and seed.",
        "Common in tutorials; against it: Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063, section 2.1",
        _below,
        needs=lambda config: config["connection"] == "plain" and config["activation"] == "tanh",
        paper_value="largest slope: 1 for tanh, 1/4 for sigmoid",
        correction="The slope of tanh is 1 at zero. From Xavier's initialisation a 20-layer tanh network keeps about a fifth "
        "of its gradient.",
    ),
    Claim(
        "residual networks explode",
        "Without normalisation or scaling, a residual network from He's initialisation grows exponentially with depth.",
        "Gradient at the input over that at the output at least 2^(depth/2) in every seed, for ReLU and He's initialisation.",
        "Zhang, Dauphin and Ma 2019, arXiv 1901.09321, section 2",
        _explodes,
        needs=lambda config: (config["connection"], config["weight_variance"]) == ("residual", 2.0),
        correction="A skip connection alone does not keep the gradient's size: it cures vanishing and brings explosion. It is "
        "even larger than 2^(depth/2), since the means of ReLU's outputs add up along the stream.",
    ),
)  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the gradient by depth, and what was measured against what was predicted."""
    lines, points = [], []
    for config in results.configs:
        name = _name(config)
        for seed, values in results.where(**config):
            layers = list(range(len(values["gradient"])))
            lines.append(Series(f"{name}, seed {seed}", "measured", layers, values["gradient"], name, seed=seed))
            points.append(Series(f"{name}, seed {seed}", "measured", values["predicted"][:1], values["gradient"][:1], name, seed=seed))
        found = results.column("predicted", **config)
        if found:
            mean = [geometric_mean(column) for column in zip(*found, strict=True)]
            lines.append(Series(f"{name}, predicted", "predicted", list(range(len(mean))), mean, name))
    depth = results.configs[0]["depth"]
    lines.append(Series("0.25^n, without the weights", "bound", [0, depth], [weight_free_bound(depth), 1.0]))
    points.append(Series("measured = predicted", "reference", [1e-18, 1e5], [1e-18, 1e5]))
    layer, gradient = Axis("layer"), Axis("gradient norm relative to the output", "log")
    return [
        Figure("gradient_by_depth", "Gradient by depth", "Every seed, and the prediction, from the output on the right to "
               "the input on the left. The dashed line is the bound that forgets the weights.", layer, gradient, tuple(lines)),
        Figure("measured_and_predicted", "Measured and predicted", "Gradient at the input over that at the output; one "
               "point per seed.", Axis("predicted", "log"), Axis("measured", "log"), tuple(points)),
    ]  # fmt: skip


STUDY = Study(
    name="R1",
    slug="gradient_decay",
    title="The law of gradient decay",
    question="How fast does the gradient shrink or grow with depth, and can one say so beforehand?",
    sources=("Glorot and Bengio 2010", "Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063", "Schoenholz et al. 2017, arXiv 1611.01232"),
    settings={"seeds": 5, "depth": 20, "dim": 256, "batch_size": 64},
    scales={"smoke": {"seeds": 2}, "full": {"seeds": 10, "dim": 1024}},
    configurations=configurations,
    run=run,
    claims=lambda settings: CLAIMS,
    figures=figures,
    notes=("Untrained networks on a batch of MNIST, in float64.",),
)  # fmt: skip
