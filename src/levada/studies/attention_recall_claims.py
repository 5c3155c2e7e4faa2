"""The claims of R15, and what decides each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levada.study import Claim, Results, Settings, Statistic
from levada.study.recall import recall_chance
from levada.study.statistics import mann_whitney, sign_test

__all__ = ["ATTENTION", "ONE_LAYER", "TWO_LAYERS", "claims", "name_of"]

ATTENTION = {"network": "attention"}
TWO_LAYERS = {"layers": 2, "matched": False}
ONE_LAYER = {"layers": 1, "matched": True}  # as wide as it takes to have the parameters of two layers
LEAST, LEARNED, HALF, SHARP = 0.99, 0.9, 0.5, 0.1  # shares, and nats
ARORA = "Arora et al. 2023, arXiv 2312.04927"
SANFORD = "Sanford, Hsu and Telgarsky 2024, arXiv 2408.14332"
OLSSON = "Olsson et al. 2022, arXiv 2209.11895"


def name_of(config: Mapping[str, Any]) -> str:
    """Return what a network is called in figures and numbers."""
    if config["measures"] == "induction":
        layers = "two layers" if config["layers"] == 2 else "one layer"
        return f"{layers}, as many parameters" if config["matched"] else layers
    if "units" not in config:
        return str(config["network"])
    size = f"{config['units']} units" if config["units"] else "as many parameters"
    return f"{config['network']}, {size}"


def _at(results: Results, pairs: int, **fields: Any) -> list[float]:
    """Accuracies of a network after the stage of so many pairs, by seed."""
    (place,) = {config["pairs"].index(pairs) for config in results.configs if "pairs" in config}
    return [found[place] for found in results.column("accuracy", measures="recall", **fields)]


def _looks_up(most: int, results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    found = _at(results, most, **ATTENTION)
    met = [share >= LEAST for share in found]
    numbers = {f"attention, accuracy at {most} pairs": found, "chance": recall_chance(most), **_looked(most, results)}
    return all(met), numbers, sign_test(sum(met), len(met))


def _state_is_full(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide wherever the pairs are more than the numbers of the state; up to half as many must have been learned."""
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    beyond = 0
    for config in results.configs:
        name = name_of(config)
        for i, (_, values) in enumerate(results.where(**config)):
            state = values["state"]
            for pairs, share in zip(config["pairs"], values["accuracy"], strict=True):
                numbers.setdefault(f"{name}, accuracy at {pairs} pairs", []).append(share)
                if pairs > state:
                    beyond += 1
                    met[i] &= share < HALF
                elif 2 * pairs <= state:
                    met[i] &= share >= LEARNED
            numbers[f"{name}, numbers in its state"] = state
    return all(met) and beyond > 0, numbers, sign_test(sum(met), len(met))


def _is_ahead(most: int, results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide on the best of the others; the statistic compares attention with it."""
    attention = _at(results, most, **ATTENTION)
    others = {
        name_of(config): _at(results, most, **{key: config.get(key) for key in ("network", "units")})
        for config in results.configs
        if config["network"] != "attention" and not config.get("units")
    }
    numbers: dict[str, Any] = {f"attention, accuracy at {most} pairs": attention}
    numbers |= {f"{name}, accuracy at {most} pairs": found for name, found in others.items()}
    for config in results.configs:
        numbers[f"{name_of(config)}, parameters"] = results.column("parameters", **config)[0]
    best = max(others.values(), key=sum)
    met = all(a > b for found in others.values() for a, b in zip(attention, found, strict=True))
    return met, numbers, mann_whitney(attention, best)


def _looked(most: int, results: Results) -> dict[str, Any]:
    looked = [found[-1] for found in results.column("lookup", **ATTENTION)]
    return {
        f"entropy of attention at {most} pairs, nats": [found["entropy"] for found in looked],
        f"attention on the right place at {most} pairs": [found["weight"] for found in looked],
    }


def _is_sharp(most: int, results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers = _looked(most, results)
    met = [entropy < SHARP for entropy in numbers[f"entropy of attention at {most} pairs, nats"]]
    return all(met), numbers, sign_test(sum(met), len(met))


def _needs_two_layers(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    (tokens,) = {config["tokens"] for config in results.configs}
    numbers: dict[str, Any] = {"chance": recall_chance(tokens - 1)}
    met = [True] * len(results.seeds)
    for config in results.configs:
        found = results.column("accuracy", **config)
        numbers[f"{name_of(config)}, accuracy"] = found
        numbers[f"{name_of(config)}, parameters"] = results.column("parameters", **config)[0]
        good = [share >= LEAST if config["layers"] == 2 else share < HALF for share in found]
        met = [before and now for before, now in zip(met, good, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def claims(settings: Settings) -> list[Claim]:
    """Give the claims, about the greatest number of pairs that the settings ask for."""
    most = settings["pairs"][-1]
    recall = {"measures": "recall"}
    return [
        Claim(
            "attention looks up", "To recall over longer sequences, gated convolutions need more and more width, "
            "“while attention did not”.", f"accuracy(attention) >= {LEAST:.0%} at {most} pairs in every seed",
            f"{ARORA}, the authors' account of it", lambda results: _looks_up(most, results), {**recall, **ATTENTION},
        ),
        Claim(
            "a fixed state fills up", "“The capacity of this memory is O(H) where H is the number of hidden units.”",
            f"accuracy < {HALF:.0%} wherever there are more pairs than numbers in the state, and >= {LEARNED:.0%} "
            "wherever there are at most half as many, for every recurrent network in every seed: what a network never "
            "learned to hold shows nothing of its capacity", "Ba et al. 2016, arXiv 1610.06258, section 1",
            _state_is_full, {**recall, "network": ("GRU", "LSTM")},
            correction="Where it fails below half of the state, training ended before the state did: more steps, not "
            "more units, would tell.",
        ),
        Claim(
            "attention is ahead at equal size", "“we find that attention outperforms gated-convolutions by a large "
            "margin.”", f"accuracy at {most} pairs: attention above the recurrent network and the convolution with as "
            "many parameters, in every seed", f"{ARORA}, abstract", lambda results: _is_ahead(most, results), recall,
        ),
        Claim(
            "attention is on the right key", "A recall is a lookup: attention finds the one place that answers.",
            f"entropy of the last attention < {SHARP} nats at {most} pairs, on average over questions, in every seed",
            "Vaswani et al. 2017, arXiv 1706.03762, for attention; the criterion is this study's",
            lambda results: _is_sharp(most, results), {**recall, **ATTENTION, "sharp": True},
        ),
        Claim(
            "induction takes two layers", "“no one-layer transformer can solve the induction heads task unless its "
            "size is exponentially larger than the size sufficient for a two-layer transformer.”",
            f"attention alone: accuracy of two layers >= {LEAST:.0%}, of one layer with as many "
            f"parameters < {HALF:.0%}, in every seed", f"{SANFORD}, abstract; {OLSSON}",
            _needs_two_layers, {"measures": "induction"},
        ),
    ]  # fmt: skip
