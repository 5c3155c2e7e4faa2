"""R4: degradation with depth is real, residual connections cure it, and it is not vanishing gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from statistics import fmean
from typing import Any

from levada.study import Axis, Cell, Claim, Cost, Figure, Results, Series, Settings, Statistic, Study, measured_series
from levada.study.data import mnist1d
from levada.study.replicas import SignalNetwork
from levada.study.statistics import cliffs_delta, mann_whitney, sign_test, student_interval
from levada.study.training import Recipe, batches, fit, held_out
from levada.theory import batch_norm_gradient_gain, batch_norm_residual_gradient

__all__ = ["STUDY"]

SELECTION_SEEDS = range(100, 105)
NUM_FITTED = 3200  # of the 4,000 training signals; the other 800 choose the learning rate
# `levada study R4 --set select=true` chooses again. Validation error, %, on SELECTION_SEEDS after 500 steps with
# .003 .01 .03 .1 .3: plain-20 59 30 16.1 15.8 24; plain-56 78 74.5 75.2 79 79; residual-20 47 17 5.7 4.5 4.7;
# residual-110, from .01 on, 14 4.2 3.5 3.9. The other architectures choose when they run.
LEARNING_RATES = {("plain", 20): 0.1, ("plain", 56): 0.01, ("residual", 20): 0.1, ("residual", 110): 0.1}
OTHERS = (("plain", 110), ("residual", 56), ("plain pre-activation", 56))
GAIN, TOLERANCE = batch_norm_gradient_gain("relu"), 0.04
HE = "He, Zhang, Ren and Sun 2015, arXiv 1512.03385, section"


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell per architecture to train, and one per architecture whose gradient is measured before training."""
    trained = [*LEARNING_RATES, *(OTHERS if settings["all_architectures"] else ())]
    configs: list[dict[str, Any]] = []
    batch = {"batch_size": settings["batch_size"], "version": 1}
    for budget in sorted(settings["budgets"], reverse=True):
        for kind, depth in sorted(trained, key=lambda architecture: -architecture[1]):
            chosen = None if settings["select"] else LEARNING_RATES.get((kind, depth))
            lr = {"lr": chosen} if chosen else {"lr_grid": list(settings["lr_grid"])}
            steps = {"steps": settings["steps"] * budget, "budget": budget}
            configs.append({"measures": "training", "kind": kind, "depth": depth, **steps, **lr, **batch})
    for depth in (110, 56, 20):
        configs += [{"measures": "gradient", "kind": kind, "depth": depth, **batch} for kind in ("plain", "residual")]
    return [Cell(config, seeds) for config in configs]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train, or measure the gradient before training, all seeds at once."""
    network = _network(config, seeds)
    if config["measures"] == "gradient":
        return [{"gradient": profile} for profile in _gradients(network, config, seeds)]
    selection = {str(lr): _validation_error(config, lr) for lr in config.get("lr_grid", ())}
    lr = float(min(selection, key=selection.__getitem__)) if selection else config["lr"]
    measured = fit(network, mnist1d(), Recipe(config["steps"], config["batch_size"], lr), seeds)
    after = _gradients(network, config, seeds)
    return [
        {**values, "gradient": profile, "lr": lr, "validation_error": selection}
        for values, profile in zip(measured, after, strict=True)
    ]


def _network(config: Mapping[str, Any], seeds: Sequence[int]) -> SignalNetwork:
    return SignalNetwork(config["kind"], config["depth"], channels=16, num_classes=10, seeds=seeds)


def _validation_error(config: Mapping[str, Any], lr: float) -> float:
    """Mean error on the held-out part of the training set, of networks whose seeds are never reported."""
    network, recipe = _network(config, SELECTION_SEEDS), Recipe(config["steps"], config["batch_size"], lr)
    return fmean(v["test_error"] for v in fit(network, held_out(mnist1d(), NUM_FITTED), recipe, SELECTION_SEEDS))


def _gradients(network: SignalNetwork, config: Mapping[str, Any], seeds: Sequence[int]) -> list[list[float]]:
    """Gradient at every boundary of the layers relative to the last, in float64, on each seed's first batch."""
    data = mnist1d()
    index = next(batches(len(data.train_inputs), config["batch_size"], seeds))
    norms = network.double().train().gradients(data.train_inputs[index].double(), data.train_targets[index])
    return (norms / norms[:, -1:]).tolist()


def _errors(results: Results, kind: str, depth: int) -> list[float]:
    return [100 * share for share in results.column("train_error", kind=kind, depth=depth)]


def _ratios(results: Results, **fields: Any) -> list[float]:
    return [profile[0] for profile in results.column("gradient", **fields)]


def _plain_degrades(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shallow, deep = _errors(results, "plain", 20), _errors(results, "plain", 56)
    numbers = {
        "plain-20, training error %": shallow,
        "plain-56, training error %": deep,
        "difference of means, points": fmean(deep) - fmean(shallow),
        "Cliff's delta": cliffs_delta(deep, shallow),
        "plain-56 after training, gradient first/last": _ratios(results, kind="plain", depth=56),
    }
    return all(d > s for s, d in zip(shallow, deep, strict=True)), numbers, mann_whitney(deep, shallow)


def _residual_does_not(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shallow, deep = _errors(results, "residual", 20), _errors(results, "residual", 110)
    apart = [d - s for s, d in zip(shallow, deep, strict=True)]
    numbers = {"residual-20, training error %": shallow, "residual-110, training error %": deep}
    return fmean(apart) <= 1, numbers, student_interval(apart, "the difference of means, points")


def _gradients_explode(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether gradients are as predicted; the statistic counts seeds in which all architectures' are."""
    numbers: dict[str, Any] = {"factor per plain layer, predicted": GAIN}
    met = [True] * len(results.seeds)
    for config in results.configs:
        depth, ratios = config["depth"], _ratios(results, **config)
        numbers[f"{config['kind']}-{depth}, gradient first/last"] = ratios
        if config["kind"] == "plain":
            factors = [ratio ** (1 / (depth - 2)) for ratio in ratios]
            numbers[f"plain-{depth}, factor per layer"] = factors
            agrees = [abs(factor - GAIN) <= TOLERANCE for factor in factors]
        else:
            agrees = [ratio <= 2 * depth for ratio in ratios]
        met = [before and now for before, now in zip(met, agrees, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; the arm with a longer budget is claimed where it runs."""
    trained, degrades = {"measures": "training", "budget": 1}, "training error(plain-56) > training error(plain-20)"
    found = [
        Claim(
            "plain networks degrade", "“Adding more layers to a suitably deep model leads to higher training error.”",
            f"{degrades} in every seed", f"{HE} 1", _plain_degrades,
            {**trained, "kind": "plain", "depth": (20, 56)}, paper_value="Figure 6: curves only, of CIFAR-10",
        ),
        Claim(
            "residual networks do not", "“Our extremely deep residual nets are easy to optimize.”",
            "mean training error(residual-110) <= mean training error(residual-20) + 1 point",
            f"{HE} 1", _residual_does_not, {**trained, "kind": "residual", "depth": (20, 110)},
            paper_value="test error on CIFAR-10: 8.75 % at 20 layers, 6.43 % at 110",
        ),
        Claim(
            "gradients do not vanish", "“Neither forward nor backward signals vanish.” The difficulty is “unlikely to "
            "be caused by vanishing gradients”.", "before training, at 20, 56 and 110 layers, in every seed: gradients "
            f"of plain networks grow towards the input by sqrt(pi/(pi-1)) = {GAIN:.4f} +- {TOLERANCE} per layer, of "
            "residual ones by at most 2 depth in all", f"{HE} 4.1; the factor: Yang et al. 2019, arXiv 1902.08129",
            _gradients_explode, {"measures": "gradient"},
            correction="They do not vanish, they explode: in plain networks with batch normalisation, theory says, by "
            f"{108 * log10(GAIN):.1f} decades over 108 layers. Training calms them, and the error stays.",
        ),
    ]  # fmt: skip
    if 3 in settings["budgets"]:
        found.append(Claim(
            "longer training does not help", "“We have experimented with more training iterations (3×) and still "
            "observed the degradation problem.”", f"{degrades} in every seed, at three times the steps",
            f"{HE} 4.1, footnote", _plain_degrades, {**trained, "budget": 3, "kind": "plain", "depth": (20, 56)},
        ))  # fmt: skip
    return found


def figures(results: Results) -> list[Figure]:
    """Draw the training curves by depth, and the gradient by layer before training."""

    def curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        return values["curves"]["steps"], [100 * share for share in values["curves"]["error"]]

    curves, profiles = [], []
    for config in results.configs:
        name, depth = f"{config['kind']}-{config['depth']}", config["depth"] - 2
        if config["measures"] == "training":
            longer = f", {config['budget']}x steps" if config["budget"] > 1 else ""
            curves += measured_series(results, config, name + longer, curve)
            continue
        block = 1 if config["kind"] == "plain" else 2  # layers of a block: boundaries lie that far apart
        layers = list(range(0, depth + 1, block))

        def profile(values: Mapping[str, Any], layers: list[int] = layers) -> tuple[list[int], list[float]]:
            return layers, values["gradient"]

        residual = batch_norm_residual_gradient(depth // 2, branch_layers=2).tolist()
        theory = [GAIN ** (depth - layer) for layer in layers] if block == 1 else residual
        profiles += measured_series(results, config, name, profile)
        profiles.append(Series(f"{name}, predicted", "predicted", layers, theory, name))
    gradient = Axis("gradient norm relative to the last layer's", "log")
    return [
        Figure("training_curves", "Training error by depth", "Every seed, on the batches; a point is the mean of a "
               "fiftieth of the steps.", Axis("step"), Axis("training error, %"), tuple(curves)),
        Figure("gradient_by_layer", "Gradient by layer before training", f"Every seed. Predicted for plain networks: "
               f"{GAIN:.4f} per layer.", Axis("layer"), gradient, tuple(profiles)),
    ]  # fmt: skip


STUDY = Study(
    name="R4", slug="degradation", title="Degradation is not vanishing gradients",
    question="Why do deeper plain networks train worse, and what do residual connections change?",
    method="Plain and residual convolutional networks of 20 to 110 layers, with batch normalisation, learn the "
           "signals of MNIST-1D, each at a learning rate chosen for it on other seeds and held-out signals. "
           "Training errors are measured after the last step. Before and after training the gradient is measured at "
           "every layer, in float64.",
    sources=("He et al. 2015, arXiv 1512.03385", "He et al. 2016, arXiv 1603.05027",
             "Yang et al. 2019, arXiv 1902.08129"),
    settings={"seeds": 5, "steps": 500, "batch_size": 64, "budgets": (1,), "all_architectures": False,
              "select": False, "lr_grid": (0.003, 0.01, 0.03, 0.1, 0.3)},
    scales={"smoke": {"seeds": 2, "steps": 2},
            "full": {"seeds": 10, "steps": 1000, "budgets": (1, 3), "all_architectures": True, "select": True}},
    costs={"smoke": Cost(3 / 3600), "small": Cost(0.0195, measured=True), "full": Cost(2.5)},
    check={"measures": "training", "kind": "residual", "depth": 20},
    configurations=configurations, run=run, claims=claims, figures=figures,
    notes=("MNIST-1D, 4,000 signals; 16 channels; SGD with momentum 0.9, weight decay 1e-4, constant learning rate.",
           "Each architecture's learning rate was chosen from one grid, on other seeds and held-out training data.",
           "Errors are measured with batch statistics of the whole training set."),
    answer="Not for want of gradients, which explode before training: after 500 steps plain networks of 56 layers "
           "have 73 to 78 % training error, of 20 layers 14 to 24 %, residual ones of 110 at most 2.8 %.",
)  # fmt: skip
