"""R5: highway networks against plain ones, 10 to 100 layers, each with the settings that a search found for it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from levada.studies.highway_claims import DEPTHS, SRIVASTAVA, claims
from levada.studies.highway_figures import figures
from levada.study import Cell, Cost, Settings, Study
from levada.study.data import mnist, standard_digits
from levada.study.devices import preferred_device
from levada.study.highway_networks import DenseNetwork, Trial, evaluate, train_trials

__all__ = ["STUDY"]

SELECTION_SEEDS = (100, 101, 102)  # the search has the first
WIDTHS = {"plain": 71, "highway": 50}  # about 5,100 weights a layer in both, as in the paper
RATES = (1e-3, 0.5)
BIASES = tuple(range(-1, -11, -1))
# What the search found; `levada study R5 --set select=true` searches again.
FOUND: dict[tuple[str, int], dict[str, Any]] = {
    ("plain", 10): {"activation": "relu", "lr": 0.0066},
    ("plain", 20): {"activation": "relu", "lr": 0.0046},
    ("plain", 50): {"activation": "tanh", "lr": 0.0071},
    ("plain", 100): {"activation": "relu", "lr": 0.0066},
    ("highway", 10): {"activation": "relu", "lr": 0.094, "bias": -9},
    ("highway", 20): {"activation": "relu", "lr": 0.051, "bias": -7},
    ("highway", 50): {"activation": "relu", "lr": 0.094, "bias": -9},
    ("highway", 100): {"activation": "relu", "lr": 0.094, "bias": -9},
}


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give a cell for each kind and depth, the deepest first."""
    same = {key: settings[key] for key in ("examples", "epochs", "batch_size")}
    configs: list[dict[str, Any]] = []
    for depth in sorted(DEPTHS, reverse=True):
        for kind, width in WIDTHS.items():
            search = {key: settings[key] for key in ("trials", "search_epochs")}
            how = search if settings["select"] else FOUND[kind, depth]
            rates = {"fractions": list(settings["fractions"])}
            configs.append({"kind": kind, "depth": depth, "width": width, **same, **how, **rates, "version": 2})
    return [Cell(config, seeds) for config in configs]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Search where it is asked for, choose what of the rate is stable, then train all seeds at once."""
    found = _search(config) if "trials" in config else []
    best = min(found, key=lambda trial: trial["loss"]) if found else config
    chosen = {key: best[key] for key in ("activation", "lr", "bias") if key in best}
    rates = _rates(config, chosen)
    # The rate whose worst seed is best: one that diverges on any seed loses to all that do not.
    chosen["lr"] = min(rates, key=lambda rate: max(rate["losses"]))["lr"]
    values = _trained(config, chosen["activation"], [_trial(seed, chosen) for seed in seeds], last=False)
    return [{**value, "chosen": chosen, "search": found, "rates": rates} for value in values]


def _trial(seed: int, settings: Mapping[str, Any]) -> Trial:
    return Trial(seed, settings["lr"], settings["bias"]) if "bias" in settings else Trial(seed, settings["lr"])


def _rates(config: Mapping[str, Any], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Training losses at fractions of a rate, in full length, on the selection seeds and the last digits."""
    rates = [float(f"{fraction * found['lr']:.2g}") for fraction in config["fractions"]]
    trials = [_trial(seed, {**found, "lr": lr}) for lr in rates for seed in SELECTION_SEEDS]
    losses = [value["loss"] for value in _trained(config, found["activation"], trials, last=True)]
    several = len(SELECTION_SEEDS)
    return [{"lr": lr, "losses": losses[i * several : (i + 1) * several]} for i, lr in enumerate(rates)]


def draw_trials(num: int, kind: str = "highway") -> list[dict[str, Any]]:
    """Draw trials of a random search: rates log-uniform, one in each of `num` equal parts, biases from -1 to -10.

    Args:
        num: number of trials; every second one has tanh, the others ReLU.
        kind: "plain" networks have no gate and no bias of it; rates are the same.

    Returns:
        For each "activation", "lr" and, for highway networks, "bias".
    """
    generator = random.Random(SELECTION_SEEDS[0])
    low, high = map(math.log10, RATES)
    found = []
    for name, count in (("relu", num - num // 2), ("tanh", num // 2)):
        biases = [BIASES[index * len(BIASES) // count] for index in range(count)]
        generator.shuffle(biases)
        for index, bias in enumerate(biases):
            lr = 10 ** (low + (high - low) * (index + generator.random()) / count)
            gate = {"bias": bias} if kind == "highway" else {}
            found.append({"activation": name, "lr": float(f"{lr:.2g}"), **gate})
    return found


def _search(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Training loss of each trial, on a seed and, where there are enough, on examples that are never reported."""
    found = []
    for name in ("relu", "tanh"):
        drawn = [trial for trial in draw_trials(config["trials"], config["kind"]) if trial["activation"] == name]
        trials = [_trial(SELECTION_SEEDS[0], trial) for trial in drawn]
        shorter = {**config, "epochs": config["search_epochs"]}
        values = _trained(shorter, name, trials, last=True) if trials else []
        found += [{**trial, "loss": value["loss"]} for trial, value in zip(drawn, values, strict=True)]
    return found


def _trained(
    config: Mapping[str, Any], activation: str, trials: Sequence[Trial], *, last: bool
) -> list[dict[str, Any]]:
    device = preferred_device()
    inputs, targets, test_inputs, test_targets = (part.to(device) for part in _digits(config["examples"], last))
    network = DenseNetwork(config["kind"], config["depth"], trials, width=config["width"], activation=activation)
    network.to(device)
    some = inputs[:500].expand(len(trials), -1, -1)
    before = network.changes(some).tolist()
    steps = config["epochs"] * (config["examples"] // config["batch_size"])
    curves = train_trials(network, inputs, targets, trials, steps=steps, batch_size=config["batch_size"])
    found = zip(
        evaluate(network, inputs, targets, len(trials)),
        evaluate(network, test_inputs, test_targets, len(trials)),
        curves.thinned(40),
        before,
        torch.nan_to_num(network.changes(some)).tolist(),
        strict=True,
    )
    return [
        {**train, "test_error": test["error"], "curve": curve, "changes_before": old, "changes": new}
        for train, test, curve, old, new in found
    ]


def _digits(examples: int, last: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first or the last examples of the training set, standardised, and as many of the test set."""
    data = mnist()
    part = slice(-examples, None) if last else slice(examples)
    inputs, test = (
        standard_digits(images.flatten(1))
        for images in (data.train_inputs[part], data.test_inputs[: max(examples, 1000)])
    )
    return inputs, data.train_targets[part], test, data.test_targets[: len(test)]


STUDY = Study(
    name="R5", slug="highway", title="Highway networks against plain ones",
    question="Do gates let fully connected networks of 100 layers train, and are they better where plain ones train?",
    answer="In 100 epochs of 500 digits two of five gated networks of 100 layers train (.0003 nats) and three "
    "diverge, plain ones end above 1.3; gates are ahead at 10 layers in four seeds, at 20 in none.",
    method="Fully connected networks of 10, 20, 50 and 100 layers, plain (71 units) and highway (50 units), learn "
    "digits of MNIST by SGD with momentum 0.9. Activation, gate bias and learning rate of each kind and depth come "
    "from one search of equal size, and the rate, or a fraction of it, from the worst of three seeds, all on other "
    "seeds and other digits. What is compared is the cross-entropy on the training digits after training.",
    sources=(SRIVASTAVA, "Srivastava, Greff and Schmidhuber 2015, arXiv 1507.06228"),
    settings={"seeds": 5, "examples": 500, "epochs": 100, "batch_size": 50, "trials": 20, "search_epochs": 50,
              "fractions": (1.0, 0.5, 0.25), "select": False},
    scales={"smoke": {"seeds": 2, "examples": 20, "epochs": 2, "batch_size": 10, "fractions": (1.0, 0.5)},
            "full": {"seeds": 10, "examples": 60000, "epochs": 400, "batch_size": 100, "trials": 40,
                     "search_epochs": 400, "select": True}},
    configurations=configurations, run=run, claims=lambda settings: claims(), figures=figures,
    notes=("At the scale small 500 digits are learned for 100 epochs, and the search has 20 trials a kind and depth, "
           "of 50 epochs, on seed 100 and the last 500 digits of the training set: ReLU and tanh, rates from .001 to "
           ".5, gate biases from -1 to -10. The paper has 60,000 digits, 400 epochs and 40 trials.",
           "The learning rate falls exponentially to a tenth. Weights are from N(0, 2/n) for ReLU and N(0, 1/n) for "
           "tanh, those of the gates from N(0, 1/n).",
           "The search let the first two claims be expected to hold; their criteria are older than it. At 100 layers "
           "it ended at .0004 nats with a gate bias of -9, at .0017 with -7, and at chance with -1 and -2.",
           "After a review, and before the run that is reported, the rate is chosen in the run: the whole, a half and "
           "a quarter of what the search found are trained in full length on seeds 100, 101 and 102 and the last 500 "
           "digits, and the one whose worst seed is best is taken. In the run before, with the search's own rates, "
           "three of five highway networks of 100 layers diverged. All three trial seeds trained at the whole rate, "
           "which was chosen again: three trial seeds do not find a rate at which two or three of five diverge.",
           "After the same review losses count at most as chance, ln 10 nats, so that how far a network diverged is of "
           "no account, and 100 gated layers are compared with 10 by medians, not by geometric means."),
    check={"kind": "highway", "depth": 10},
    costs={"smoke": Cost(2 / 3600), "small": Cost(0.0783, measured=True), "full": Cost(14, "one H100")},
)  # fmt: skip
