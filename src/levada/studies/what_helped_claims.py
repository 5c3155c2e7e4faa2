"""What R11 claims."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from math import prod
from statistics import fmean
from typing import Any

from levada.study import Claim, Results, Settings, Statistic, Undecided
from levada.study.statistics import sign_test, student_interval

__all__ = ["ADAM", "FACTORS", "GLOROT", "HE", "IOFFE", "claims", "effects"]

GLOROT = "Glorot and Bengio 2010"
HE = "He, Zhang, Ren and Sun 2015, arXiv 1502.01852"
IOFFE = "Ioffe and Szegedy 2015, arXiv 1502.03167"
ADAM = "Kingma and Ba 2014, arXiv 1412.6980"
CHANCE, LEARNT = 0.15, 0.8  # the largest class of ten has 11 %
# Each factor's field, and its level that is said to help.
FACTORS: dict[str, tuple[str, Any]] = {
    "initialisation": ("initialisation", "scaled"),
    "batch norm": ("norm", True),
    "ReLU": ("activation", "relu"),
    "Adam": ("optimizer", "Adam"),
}


def effects(results: Results) -> dict[str, list[float]]:
    """Return every effect of the factorial on accuracy, in points: one number for each seed.

    Half of the cells are at the level that is said to help, half at the other: a main effect is the difference of their
    means. An interaction's halves are those in which an even and an odd number of its factors are at the other level.

    Args:
        results: all sixteen cells.

    Returns:
        Fifteen effects by name, main effects first.
    """
    cells = [(config, results.column("accuracy", **config)) for config in results.configs]
    found = {}
    for order in range(1, len(FACTORS) + 1):
        for names in itertools.combinations(FACTORS, order):
            signs = [prod(_side(config, name) for name in names) for config, _ in cells]
            found[" x ".join(names)] = [
                100 * 2 * fmean(sign * shares[seed] for sign, (_, shares) in zip(signs, cells, strict=True))
                for seed in range(len(cells[0][1]))
            ]
    return found


def _side(config: Mapping[str, Any], factor: str) -> int:
    field, helpful = FACTORS[factor]
    return 1 if config[field] == helpful else -1


def _helps(results: Results, factor: str) -> tuple[bool | Undecided, dict[str, Any], None]:
    """Decide whether a remedy takes cells from below what counts as learnt to above it, in every seed."""
    field, helpful = FACTORS[factor]
    numbers: dict[str, Any] = {}
    gains, made, unmade, partly = [], [], [], []
    for config in results.configs:
        if config[field] == helpful:
            continue
        without = results.column("accuracy", **config)
        with_it = results.column("accuracy", **{**config, field: helpful})
        name = ", ".join(_level(config, other) for other in FACTORS if other != factor)
        numbers[f"accuracy without and with it: {name}"] = [without, with_it]
        gains.append([100 * (b - a) for a, b in zip(without, with_it, strict=True)])
        up = [a < LEARNT <= b for a, b in zip(without, with_it, strict=True)]
        down = [b < LEARNT <= a for a, b in zip(without, with_it, strict=True)]
        made += [name] if all(up) else []
        unmade += [name] if all(down) else []
        partly += [name] if any(up) != all(up) or any(down) != all(down) else []
    mean = student_interval([fmean(own) for own in zip(*gains, strict=True)])
    numbers["mean gain over the settings, points, with its 95 % interval"] = [mean.value, mean.low, mean.high]
    numbers["settings that it makes trainable"] = made
    if len(results.configs) == 2 ** len(FACTORS):
        numbers |= {f"{name}: effect, points": own for name, own in effects(results).items() if factor in name}
    if made or unmade or not partly:
        return bool(made) and not unmade, numbers, None
    return Undecided(f"it makes networks trainable in some seeds only: {'; '.join(partly)}"), numbers, None


def _level(config: Mapping[str, Any], factor: str) -> str:
    value = config[FACTORS[factor][0]]
    words = {True: "batch norm", False: "no norm", "scaled": "scaled weights", "standard": "standard weights"}
    return words.get(value, str(value))


def _accuracies(results: Results) -> dict[str, list[float]]:
    return {
        ", ".join(_level(config, name) for name in FACTORS): results.column("accuracy", **config)
        for config in results.configs
    }


def _within(results: Results, low: float, high: float) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether the accuracy of every cell lies between two numbers in every seed."""
    found = _accuracies(results)
    met = [all(low <= share <= high for share in shares) for shares in zip(*found.values(), strict=True)]
    return all(met), {f"{name}: accuracy": shares for name, shares in found.items()}, sign_test(sum(met), len(met))


def _at_chance(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    return _within(results, 0.0, CHANCE)


def _learns(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    return _within(results, LEARNT, 1.0)


def _by_epsilon(results: Results, column: str) -> dict[float, list[float]]:
    found = {
        float(config["eps"]): [v[0] if column == "moved" else v for v in results.column(column, **config)]
        for config in results.configs
        if not config["residual"]
    }
    return dict(sorted(found.items(), reverse=True))


def _epsilon_numbers(results: Results) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for eps, moved in _by_epsilon(results, "moved").items():
        numbers[f"epsilon {eps:g}: change of the first layer, of its norm"] = moved
        numbers[f"epsilon {eps:g}: accuracy"] = _by_epsilon(results, "accuracy")[eps]
    first = results.column("gradient", **results.configs[0])
    numbers["root mean square of the first layer's gradient, before training"] = [profile[0] for profile in first]
    return numbers


def _moves(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    moved = _by_epsilon(results, "moved")
    usual, least = moved[1e-8], moved[min(moved)]
    met = [a <= 1e-3 and b >= 0.1 for a, b in zip(usual, least, strict=True)]
    return all(met), _epsilon_numbers(results), sign_test(sum(met), len(met))


def _moving_learns(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    accuracy = _by_epsilon(results, "accuracy")
    met = [share >= LEARNT for share in accuracy[min(accuracy)]]
    return all(met), _epsilon_numbers(results), sign_test(sum(met), len(met))


def _skips(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shares = {config["optimizer"]: results.column("accuracy", **config) for config in results.configs}
    met = [share >= LEARNT for share in shares["Adam"]]
    return all(met), {f"residual, {name}: accuracy": own for name, own in shares.items()}, sign_test(sum(met), len(met))


def _remedies(depth: int) -> list[Claim]:
    factorial = {"measures": "factorial"}
    told: Sequence[tuple[str, str, str, str, str, str, Mapping[str, Any]]] = (
        ("Glorot's weights", "initialisation", "Glorot's initialisation made deeper networks trainable.", GLOROT,
         "tanh, 5 hidden layers, Shapeset: 27.15 % error with standard, 15.60 % with normalised weights", "",
         {"measures": "tanh"}),
        ("He's weights", "initialisation", "He's initialisation made deeper networks trainable.", HE,
         "", "",
         {**factorial, "activation": "relu"}),
        ("batch norm", "batch norm", "Batch normalisation made deeper networks trainable.", IOFFE,
         "steps to 72.2 % on ImageNet: 31.0 million without, 13.3 million with", "", factorial),
        ("ReLU", "ReLU", "Rectified units made deeper networks trainable.", HE, "", "Not by themselves: of standard "
         "weights and without normalisation a rectified network loses its signal as well.", factorial),
        ("Adam", "Adam", "Adam made deeper networks trainable.", ADAM, "", "Where a signal is left it helps; sigmoids "
         "and rectified units that have lost it stay at chance, as with gradient descent.", factorial),
    )  # fmt: skip
    return [
        Claim(
            f"{name} helped", statement, f"{depth} hidden layers, each setting of the other factors: training accuracy "
            f"in every seed below {LEARNT} without it and at least {LEARNT} with it, in one setting or more, and the "
            "other way round in none; not held where no seed of any setting crosses, else not decided", source,
            functools.partial(_helps, factor=factor), needs, paper_value=paper, correction=correction,
        )
        for name, factor, statement, source, paper, correction, needs in told
    ]  # fmt: skip


def claims(settings: Settings) -> list[Claim]:
    """Give the claims."""
    depth = settings["depth"]
    sigmoid = {"measures": "factorial", "activation": "sigmoid"}
    plain = {"measures": "epsilon", "residual": False}
    return [
        *_remedies(depth),
        Claim(
            "sigmoids stay at chance", "Without normalisation, neither better weights nor Adam trains deep sigmoid "
            "networks.", f"{depth} hidden layers: training accuracy at most {CHANCE} in all four cells, in every seed",
            GLOROT, _at_chance, {**sigmoid, "norm": False},
            paper_value="82.61 % error on Shapeset with 5 hidden layers, where tanh has 27.15 %",
        ),
        Claim(
            "normalised sigmoids learn", "Batch normalisation makes networks of saturating activations trainable.",
            f"{depth} hidden layers: training accuracy at least {LEARNT} in all four cells, in every seed", IOFFE,
            _learns, {**sigmoid, "norm": True},
            paper_value="sigmoid Inception: 69.8 % with, at most 0.1 % without",
        ),
        Claim(
            "epsilon holds the first layer", "Adam's epsilon, and not the gradient, decides whether the first layer "
            "moves.", f"{depth} sigmoid layers, change of the first layer's weights relative to their norm: at most "
            "1e-3 with epsilon 1e-8, at least 0.1 with the least, in every seed", ADAM, _moves, plain,
        ),
        Claim(
            "a step of the right size is enough", "Adam divides a gradient by its own size, so that it does not matter "
            "whether gradients vanish.", f"the same networks with the least epsilon: training accuracy at least "
            f"{LEARNT} in every seed", "common in tutorials", _moving_learns, plain,
            correction="A small epsilon gives the first layers steps of the usual size, and the network learns next to "
            "nothing: on its way forward the signal is lost as well, and what the steps follow is not worth following.",
        ),
        Claim(
            "with skips Adam is enough", "Residual connections train the same sigmoid layers, with Adam as it is.",
            f"the same layers on residual connections, epsilon 1e-8: training accuracy at least {LEARNT} in every "
            "seed", "He, Zhang, Ren and Sun 2015, arXiv 1512.03385", _skips, {"measures": "epsilon", "residual": True},
        ),
    ]  # fmt: skip
