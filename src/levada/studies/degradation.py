"""R4: degradation with depth is real, residual connections cure it, and it is not vanishing gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from levada.study import Axis, Cell, Claim, Figure, Results, Series, Settings, Statistic, Study
from levada.study.data import mnist1d
from levada.study.replicas import SignalNetwork
from levada.study.statistics import bootstrap_interval, cliffs_delta, geometric_mean, mann_whitney
from levada.study.training import Recipe, batches, error, measure_statistics, train
from levada.theory import batch_norm_gradient_gain, batch_norm_residual_gradient

__all__ = ["STUDY"]

SELECTION_SEEDS = range(100, 105)
NUM_FITTED = 3200  # of the 4,000 training signals; the other 800 choose the learning rate
# Least validation error on SELECTION_SEEDS at 500 steps; `levada study R4 --set select=true` chooses again.
LEARNING_RATES = {
    ("plain", 20): 0.1, ("plain", 56): 0.1, ("plain", 110): 0.1, ("plain pre-activation", 56): 0.1,
    ("residual", 20): 0.1, ("residual", 56): 0.1, ("residual", 110): 0.1,
}  # fmt: skip
GAIN, TOLERANCE = batch_norm_gradient_gain("relu"), 0.04


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell per architecture to train, and one per architecture whose gradient is measured before training."""
    trained = [("residual", 110), ("plain", 56), ("plain", 20), ("residual", 20)]
    if settings["all_architectures"]:
        trained = sorted(LEARNING_RATES, key=lambda architecture: -architecture[1])
    configs: list[dict[str, Any]] = []
    for factor in sorted(settings["budgets"], reverse=True):
        recipe = {"steps": settings["steps"] * factor, "batch_size": settings["batch_size"], "budget": factor}
        for kind, depth in trained:
            lr = {"lr_grid": list(settings["lr_grid"])} if settings["select"] else {"lr": LEARNING_RATES[kind, depth]}
            configs.append({"measures": "training", "kind": kind, "depth": depth, **recipe, **lr})
    for depth in (110, 56, 20):
        for kind in ("plain", "residual"):
            configs.append({"measures": "gradient", "kind": kind, "depth": depth, "batch_size": settings["batch_size"]})
    return [Cell({**config, "version": 1}, seeds) for config in configs]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train, or measure the gradient before training, all seeds at once."""
    network = SignalNetwork(config["kind"], config["depth"], channels=16, num_classes=10, seeds=seeds)
    if config["measures"] == "gradient":
        return [{"gradient": profile} for profile in _gradients(network, config["batch_size"], seeds)]
    data = mnist1d()
    selection = {str(lr): _validation_error(config, lr) for lr in config.get("lr_grid", ())}
    lr = float(min(selection, key=selection.__getitem__)) if selection else config["lr"]
    recipe = Recipe(config["steps"], config["batch_size"], lr)
    curves = train(network, data.train_inputs, data.train_targets, recipe, seeds).thinned(50)
    gradients = _gradients(network, config["batch_size"], seeds)
    measure_statistics(network, data.train_inputs, len(seeds))
    train_error = error(network, data.train_inputs, data.train_targets, len(seeds)).tolist()
    test_error = error(network, data.test_inputs, data.test_targets, len(seeds)).tolist()
    return [
        {"train_error": train_error[i], "test_error": test_error[i], "lr": lr, "selection": selection,
         "curves": curves[i], "gradient": gradients[i]}
        for i in range(len(seeds))
    ]  # fmt: skip


def _validation_error(config: Mapping[str, Any], lr: float) -> float:
    """Error on the held-out part of the training set of networks whose seeds are never reported."""
    data, seeds = mnist1d(), list(SELECTION_SEEDS)
    inputs, targets = data.train_inputs, data.train_targets
    network = SignalNetwork(config["kind"], config["depth"], channels=16, num_classes=10, seeds=seeds)
    train(network, inputs[:NUM_FITTED], targets[:NUM_FITTED], Recipe(config["steps"], config["batch_size"], lr), seeds)
    measure_statistics(network, inputs[:NUM_FITTED], len(seeds))
    return float(error(network, inputs[NUM_FITTED:], targets[NUM_FITTED:], len(seeds)).mean())


def _gradients(network: SignalNetwork, batch_size: int, seeds: Sequence[int]) -> list[list[float]]:
    """Gradient at every boundary of the layers relative to the last, in float64, on each seed's first batch."""
    data = mnist1d()
    index = next(batches(len(data.train_inputs), batch_size, seeds))
    norms = network.double().train().gradients(data.train_inputs[index].double(), data.train_targets[index])
    network.float()
    return (norms / norms[:, -1:]).tolist()  # type: ignore[no-any-return]


def _errors(results: Results, kind: str, depth: int) -> list[float]:
    return [100 * value for value in results.column("train_error", kind=kind, depth=depth)]


def _plain_degrades(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shallow, deep = _errors(results, "plain", 20), _errors(results, "plain", 56)
    numbers = {
        "plain-20, training error %": shallow, "plain-56, training error %": deep,
        "difference of means": fmean(deep) - fmean(shallow), "Cliff's delta": cliffs_delta(deep, shallow),
        "gradient before the last step, plain-56": _ratios(results, kind="plain", depth=56),
    }  # fmt: skip
    return all(d > s for s, d in zip(shallow, deep, strict=True)), numbers, mann_whitney(deep, shallow)


def _residual_does_not(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shallow, deep = _errors(results, "residual", 20), _errors(results, "residual", 110)
    apart = [d - s for s, d in zip(shallow, deep, strict=True)]
    numbers = {"residual-20, training error %": shallow, "residual-110, training error %": deep}
    return fmean(apart) <= 1, {**numbers, "difference of means": fmean(apart)}, bootstrap_interval(apart)


def _ratios(results: Results, **fields: Any) -> list[float]:
    return [gradient[0] for gradient in results.column("gradient", **fields)]


def _gradients_explode(results: Results) -> tuple[bool, dict[str, Any], None]:
    numbers: dict[str, Any] = {"predicted factor per plain layer": GAIN}
    met = True
    for config in results.configs:
        depth, found = config["depth"], results.column("gradient", **config)
        ratios = [gradient[0] for gradient in found]
        if config["kind"] == "plain":
            factors = [gradient[0] ** (1 / (len(gradient) - 1)) for gradient in found]
            numbers |= {f"plain-{depth}, factor per layer": factors, f"plain-{depth}, first over last": ratios}
            met &= all(abs(factor - GAIN) <= TOLERANCE for factor in factors)
        else:
            numbers |= {f"residual-{depth}, first over last": ratios, f"residual-{depth}, bound 2L": 2 * depth}
            met &= all(math.log(ratio) <= math.log(2 * depth) for ratio in ratios)
    return met, numbers, None


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; the arm with a longer budget is decided where it runs."""

    def trains(kind: str, *depths: int, budget: int = 1) -> Any:
        wanted = {"measures": "training", "kind": kind, "budget": budget}
        return lambda c: c["depth"] in depths and all(c.get(key) == value for key, value in wanted.items())

    he, degrades = "He, Zhang, Ren and Sun 2015, arXiv 1512.03385", "training error(plain-56) > training error(plain-20)"
    found = [
        Claim("plain networks degrade", "“Adding more layers to a suitably deep model leads to higher training error.”",
              f"{degrades} in every seed", f"{he}, section 1", _plain_degrades, trains("plain", 20, 56),
              "CIFAR-10: curves only; independent test errors 9.5 % at 20 layers, 12.8 to 13.5 % at 56"),
        Claim("residual networks do not", "“Our extremely deep residual nets are easy to optimize.”",
              "mean training error(residual-110) <= mean training error(residual-20) + 1 point", f"{he}, section 1",
              _residual_does_not, trains("residual", 20, 110), "CIFAR-10 test error 8.75 % at 20 layers, 6.43 % at 110"),
        Claim("gradients do not vanish", "“Neither forward nor backward signals vanish”: the difficulty is “unlikely to be "
              "caused by vanishing gradients”.", f"Before training, in every seed at 20, 56 and 110 layers: plain networks' "
              f"gradients grow towards the input by sqrt(pi / (pi - 1)) = {GAIN:.4f} +- {TOLERANCE} per layer, residual "
              "ones by at most 2 depth in all.", f"{he}, section 4.1; the factor: Yang et al. 2019, arXiv 1902.08129",
              _gradients_explode, lambda c: c["measures"] == "gradient", correction="They are not of “healthy norms” either, "
              "as the paper has it: in plain networks with batch normalisation they explode, by 1e8 over 110 layers."),
    ]  # fmt: skip
    if 3 in settings["budgets"]:
        found.append(
            Claim("longer training does not help", "“We have experimented with more training iterations (3×) and still "
                  "observed the degradation problem.”", f"{degrades} in every seed, at three times the steps",
                  f"{he}, section 4.1, footnote", _plain_degrades, trains("plain", 20, 56, budget=3)),
        )  # fmt: skip
    return found


def figures(results: Results) -> list[Figure]:
    """Draw the training curves by depth, and the gradient by layer before training."""
    curves, profiles = [], []
    for config in results.configs:
        name = f"{config['kind']}-{config['depth']}" + (", 3x steps" if config.get("budget") == 3 else "")
        for seed, values in results.where(**config):
            if config["measures"] == "training":
                percent = [100 * share for share in values["curves"]["error"]]
                curves.append(Series(f"{name}, seed {seed}", "measured", values["curves"]["steps"], percent, name, seed=seed))
            else:
                layers = [index * (config["depth"] - 2) / (len(values["gradient"]) - 1) for index in range(len(values["gradient"]))]
                profiles.append(Series(f"{name}, seed {seed}", "measured", layers, values["gradient"], name, seed=seed))
        if config["measures"] == "gradient":
            depth = config["depth"] - 2
            if config["kind"] == "plain":
                theory = [GAIN ** (depth - layer) for layer in range(depth + 1)]
            else:
                theory = batch_norm_residual_gradient(depth // 2, branch_layers=2).tolist()
            step = depth / (len(theory) - 1)
            profiles.append(Series(f"{name}, predicted", "predicted", [step * i for i in range(len(theory))], theory, name))
    return [
        Figure("training_curves", "Training error by depth", "Every seed; each point is the mean of a fiftieth of the steps.",
               Axis("step"), Axis("training error, %"), tuple(curves)),
        Figure("gradient_by_layer", "Gradient by layer before training", "Gradient norm relative to the last layer, every "
               f"seed. Plain: {GAIN:.4f} per layer.", Axis("layer"), Axis("relative gradient norm", "log"), tuple(profiles)),
    ]  # fmt: skip


STUDY = Study(
    name="R4",
    slug="degradation",
    title="Degradation is not vanishing gradients",
    question="Why do deeper plain networks train worse, and what do residual connections change?",
    sources=("He et al. 2015, arXiv 1512.03385", "He et al. 2016, arXiv 1603.05027", "Yang et al. 2019, arXiv 1902.08129"),
    settings={"seeds": 5, "steps": 500, "batch_size": 64, "budgets": (1,), "all_architectures": False, "select": False,
              "lr_grid": (0.01, 0.03, 0.1, 0.3)},
    scales={"smoke": {"seeds": 2, "steps": 40},
            "full": {"seeds": 10, "steps": 1000, "budgets": (1, 3), "all_architectures": True, "select": True}},
    configurations=configurations,
    run=run,
    claims=claims,
    figures=figures,
    notes=("MNIST-1D, 4,000 signals; 16 channels; SGD with momentum 0.9, weight decay 1e-4, constant learning rate.",
           "The learning rate of each architecture was chosen from one grid on other seeds and held-out training data.",
           "Errors are measured with batch statistics of the whole training set."),
)  # fmt: skip
