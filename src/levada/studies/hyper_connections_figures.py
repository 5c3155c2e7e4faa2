"""What R19 draws."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from levada.studies.hyper_connections_claims import GAINS
from levada.study import Axis, Figure, Results, Series, measured_series

__all__ = ["figures"]

FEW = 100  # steps, below which a loss says nothing


def figures(results: Results) -> list[Figure]:
    """Draw gain by layer and in training, losses, gradients by layer, and the drift of the columns."""
    by_layer, in_training, norms, losses, lag, gradients, drift = [], [], [], [], [], [], []
    for config in results.configs:
        if config["measures"] != "training":
            continue
        name, mixed = _name(config), config["connection"] in ("HC", "mHC")
        own = config["matched"] and not config.get("rate_of")
        if mixed and config["matched"]:
            in_training += measured_series(results, config, name, _amax_by_step)
        if own and (mixed or config["connection"] == "residual"):
            norms += measured_series(results, config, name, _norm_by_step)
        if config["clipped"]:
            losses += measured_series(results, config, name, lambda v: ([v["train_loss"]], [v["test_loss"]]))
            losses += _at_other_rate(results, config, name)
        if config["clipped"] and own:
            gradients += measured_series(results, config, name, _numbered("gradient_after"))
            lag += _behind_residual(results, config, name)
            for way in ("forward", "backward") if mixed else ():
                points = functools.partial(_mixing_by_layer, signal=f"composite_{way}_gain")
                by_layer += measured_series(results, config, f"{name}, {way}", points)
    for label, key in (("99th percentile", "log_column"), ("median", "log_column_median")):
        for seed in results.seeds:
            drift += _drift_of(results, seed, label, key)
    deviation = max(results.column("row_deviation", measures="drift"), default=0.0)
    return [
        Figure("gain_by_layer", "Composite gain by layer", "After training with clipping, every seed. Forward: largest "
               "|row sum| of the product from the first layer to this one; backward: largest |column sum| of that from "
               "this layer to the last. Amax is the larger of the two.",
               Axis("layer"), Axis("gain", "log"), tuple(by_layer)),
        Figure("gain_in_training", "Composite gain in training", "Amax, the largest |row sum| or |column sum| of the "
               "products from the first layer to any and from any to the last, measured "
               f"{_times_measured(results)} times; every seed.", Axis("step"), Axis("Amax", "log"), tuple(in_training)),
        Figure("loss_difference", "Training loss beside the residual network's", "Loss on the batches less that of the "
               "residual network of the same seed on the same batches, each at its own learning rate: "
               f"{_rates(results)}. A point is the mean of a fiftieth of the steps. Below zero: ahead.{_few(results)}",
               Axis("step"), Axis("difference, nats"), tuple(lag)),
        Figure("losses", "Losses after training", "One point per seed, with clipping. Learning rates: "
               f"{_rates(results)}; others where the legend names them.{_few(results)}",
               Axis("loss on the training text, nats"), Axis("loss on held-out books, nats"), tuple(losses)),
        Figure("gradient_in_training", "Gradient in training", "Norm of the gradient by all parameters, before it is "
               "clipped; a point is the mean of a fiftieth of the steps, every seed.", Axis("step"),
               Axis("gradient norm", "log"), tuple(norms)),
        Figure("gradient_by_layer", "Gradient by layer after training", "Norm of the gradient by a branch's parameters "
               "on the seed's first batch, in float64; every seed.", Axis("layer"), Axis("gradient norm", "log"),
               tuple(gradients)),
        Figure("column_drift", "What Sinkhorn iterations leave in the columns", "Products of 60 matrices near the "
               "identity and alike, every seed: the 99th percentile and the median, over products, of the largest "
               f"|log column sum|. Row sums differ from 1 by {deviation:.0e} at most.",
               Axis("iterations", "log"), Axis("|log column sum|", "log"), tuple(drift)),
    ]  # fmt: skip


def _rates(results: Results) -> str:
    """The learning rates of those that are compared, as `residual 0.003, HC 0.01`."""
    told = []
    for config in results.configs:
        if config.get("clipped") and config["matched"] and not config.get("rate_of"):
            rates = sorted(set(results.column("lr", **config)))
            told += [f"{config['connection']} {' or '.join(f'{rate:g}' for rate in rates)}"] if rates else []
    return ", ".join(told)


def _few(results: Results) -> str:
    steps = [config["steps"] for config in results.configs if config["measures"] == "training"]
    return f" After {steps[0]} steps nothing is decided." if steps and steps[0] < FEW else ""


def _times_measured(results: Results) -> int:
    return max((len(values["gains"]) for _, values in results.where(measures="training", connection="HC")), default=0)


def _at_other_rate(results: Results, config: Mapping[str, Any], name: str) -> list[Series]:
    found = [(seed, values["other_rate"]) for seed, values in results.where(**config) if values.get("other_rate")]
    return [
        Series(f"{name} at {at['lr']:g}, seed {seed}", "measured", [at["train_loss"]], [at["test_loss"]],
               group=f"{name} at {at['lr']:g}", seed=seed)
        for seed, at in found
    ]  # fmt: skip


def _name(config: Mapping[str, Any]) -> str:
    branches = "" if config["matched"] else ", residual's branches"
    rate = f", {config['rate_of']}'s rate" if config.get("rate_of") else ""
    return f"{config['connection']}{branches}{rate}{'' if config['clipped'] else ', not clipped'}"


def _numbered(column: str) -> Any:
    return lambda values: (list(range(1, len(values[column]) + 1)), values[column])


def _mixing_by_layer(values: Mapping[str, Any], signal: str) -> tuple[list[int], list[float]]:
    found = values["mixing"][signal]
    return list(range(1, len(found) + 1)), found


def _amax_by_step(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    return [g["step"] for g in values["gains"]], [max(g[name] for name in GAINS) for g in values["gains"]]


def _norm_by_step(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    return values["curves"]["steps"], values["curves"]["gradient_norm"]


def _behind_residual(results: Results, config: Mapping[str, Any], name: str) -> list[Series]:
    if config["connection"] == "residual":
        return []
    base = dict(results.where(measures="training", connection="residual"))

    def difference(seed: int, values: Mapping[str, Any]) -> list[float]:
        pairs = zip(values["curves"]["loss"], base[seed]["curves"]["loss"], strict=False)  # one may have ended early
        return [a - b for a, b in pairs]

    return [
        Series(f"{name}, seed {seed}", "measured", values["curves"]["steps"], difference(seed, values), name, seed=seed)
        for seed, values in results.where(**config)
        if seed in base
    ]


def _drift_of(results: Results, seed: int, label: str, key: str) -> list[Series]:
    points = []
    for config in results.configs:
        if config["measures"] == "drift":
            points += [(config["iterations"], found[key]) for at, found in results.where(**config) if at == seed]
    if not points:
        return []
    x, y = zip(*sorted(points), strict=True)
    return [Series(f"{label}, seed {seed}", "measured", list(x), list(y), group=label, seed=seed)]
