"""R3: how deep a plain network of random weights can be trained, and what the depth scale of its signals says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from levada.studies.trainable_depth_claims import BIAS_VARIANCE, claims, figures
from levada.study import Cell, Cost, Settings, Study
from levada.study.data import mnist
from levada.study.gaussian_perceptrons import GaussianPerceptron, steps_to_accuracy

__all__ = ["STUDY"]

SELECTION_SEEDS = (100, 101)
# Learning rate times depth, by weight variance: the one of .01 .03 .1 .3 that trained the deepest networks from
# SELECTION_SEEDS in 300 steps (.01 was tried at 1.76, 2 and 2.5); `--set select=true` chooses again, for each depth.
RATES = {0.5: 0.3, 0.9: 0.3, 1.0: 0.3, 1.5: 0.03, 1.76: 0.03, 2.0: 0.03, 2.5: 0.03, 3.0: 0.03, 4.0: 0.03}


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell per initialisation and depth, the deepest first."""
    shape = {key: settings[key] for key in ("dim", "steps", "batch_size")} | {"version": 1}
    cells = []
    for depth in sorted(settings["depths"], reverse=True):
        for variance in settings["variances"]:
            chosen = None if settings["select"] else RATES.get(variance)
            rate = {"rate": chosen} if chosen else {"rates": list(settings["rates"])}
            cells.append(Cell({"weight_variance": variance, "depth": depth, **rate, **shape}, seeds))
    return cells


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train until half of the training examples asked are answered right, all seeds at once."""
    rate = config["rate"] if "rate" in config else _selected(config)
    steps = _steps(config, [rate] * len(seeds), seeds)
    return [{"steps": number, "trained": number >= 0, "rate": rate} for number in steps.tolist()]


def _selected(config: Mapping[str, Any]) -> float:
    """Return the rate that trains most networks from other seeds, and of these the one that trains them soonest."""
    rates, num = config["rates"], len(SELECTION_SEEDS)

    def done(reached: Tensor) -> bool:
        return bool((reached.view(-1, num) >= 0).all(1).any())

    steps = _steps(config, [rate for rate in rates for _ in range(num)], SELECTION_SEEDS * len(rates), done)
    late = torch.where(steps < 0, 10 * config["steps"], steps).view(-1, num).sum(1)
    return float(rates[int(late.argmin())])


def _steps(config: Mapping[str, Any], rates: Sequence[float], seeds: Sequence[int], until: Any = None) -> Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs, targets = (part.to(device) for part in _digits())
    network = GaussianPerceptron(
        inputs.shape[1],
        config["dim"],
        10,
        config["depth"],
        weight_variance=config["weight_variance"],
        bias_variance=BIAS_VARIANCE,
        seeds=seeds,
    ).to(device)
    return steps_to_accuracy(
        network,
        inputs,
        targets,
        rates=[rate / config["depth"] for rate in rates],
        seeds=seeds,
        steps=config["steps"],
        batch_size=config["batch_size"],
        until=until,
    )


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = mnist()
    return (data.train_inputs.flatten(1).float() / 255 - 0.1307) / 0.3081, data.train_targets


STUDY = Study(
    name="R3", slug="trainable_depth", title="The phase diagram of trainable depth",
    question="How deep may a plain network be to train at all, and does the depth scale of its signals foretell it?",
    method="Plain tanh networks of width 128 and 5 to 80 hidden layers, with Gaussian weights of nine variances, are "
    "trained on MNIST for at most 300 steps. A depth is trainable if half of 500 training images are answered right "
    "within these steps. The deepest trainable network of each variance is compared with 6 xi_c, computed beforehand "
    "from the initialisation alone.",
    sources=("Schoenholz et al. 2017, arXiv 1611.01232", "Poole et al. 2016, arXiv 1606.05340"),
    settings={"seeds": 5, "variances": (0.5, 0.9, 1.0, 1.5, 1.76, 2.0, 2.5, 3.0, 4.0),
              "depths": (5, 7, 10, 14, 20, 28, 40, 57, 80), "dim": 128, "steps": 300, "batch_size": 32,
              "rates": (0.01, 0.03, 0.1, 0.3), "select": False},
    costs={"smoke": Cost(0.001), "small": Cost(0.067), "full": Cost(40, "one H100")},
    scales={"smoke": {"seeds": 2, "variances": (1.0, 1.76), "depths": (5, 10), "dim": 32, "steps": 40},
            "full": {"depths": (5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 300), "dim": 300, "steps": 45_000,
                     "select": True}},
    configurations=configurations, run=run, claims=claims, figures=figures,
    notes=("Biases have variance 0.05; SGD with momentum 0.9, its rate divided by the depth.",
           "Rates, width, batch and depths were chosen on trial seeds 100 and 101. At 160 layers the critical network "
           "did not train within 300 steps at a rate of .03, .1 or .3 over the depth, so that the scale small ends at "
           "80; the scale full goes on to 300 layers.",
           "A frontier at the deepest network asked is a lower bound."),
)  # fmt: skip
