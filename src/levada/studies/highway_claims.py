"""What R5 claims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from levada.study import Claim, Results, Statistic
from levada.study.statistics import cliffs_delta, mann_whitney, sign_test

__all__ = ["DEPTHS", "PROFILE_DEPTH", "SRIVASTAVA", "claims"]

SRIVASTAVA = "Srivastava, Greff and Schmidhuber 2015, arXiv 1505.00387"
DEPTHS = (10, 20, 50, 100)
PROFILE_DEPTH, FIRST = 50, 10
LEAST, CHANCE = 1e-12, math.log(10)  # nats: 0 has no logarithm, and a network that diverged is at chance


def _losses(results: Results, kind: str, depth: int) -> list[float]:
    return [min(max(loss, LEAST), CHANCE) for loss in results.column("loss", kind=kind, depth=depth)]


def _numbers(results: Results) -> dict[str, Any]:
    """Loss, error and what was chosen, for each kind and depth that is there."""
    numbers: dict[str, Any] = {}
    for config in sorted(results.configs, key=lambda c: (c["kind"], c["depth"])):
        name, fields = f"{config['kind']}-{config['depth']}", {"kind": config["kind"], "depth": config["depth"]}
        numbers[f"{name}: training cross-entropy, nats"] = _losses(results, **fields)
        numbers[f"{name}: training error %"] = [100 * share for share in results.column("error", **fields)]
        chosen = results.column("chosen", **fields)[0]
        bias = f", gate bias {chosen['bias']:g}" if config["kind"] == "highway" else ""
        numbers[f"{name}: settings"] = f"{chosen['activation']}, learning rate {chosen['lr']:g}{bias}"
    return numbers


def _plain_degrades(results: Results) -> tuple[bool, Mapping[str, Any], Statistic]:
    shallow, deep = _losses(results, "plain", 10), _losses(results, "plain", 100)
    ratios = [d / s for s, d in zip(shallow, deep, strict=True)]
    numbers = {"plain-100 / plain-10": ratios, "Cliff's delta": cliffs_delta(deep, shallow), **_numbers(results)}
    return min(ratios) >= 100, numbers, mann_whitney(deep, shallow)


def _highway_trains(results: Results) -> tuple[bool, Mapping[str, Any], Statistic]:
    plain, highway = _losses(results, "plain", 100), _losses(results, "highway", 100)
    ratios = [h / p for p, h in zip(plain, highway, strict=True)]
    numbers = {"highway-100 / plain-100": ratios, "Cliff's delta": cliffs_delta(highway, plain), **_numbers(results)}
    return max(ratios) <= 0.1, numbers, mann_whitney(highway, plain)


def _on_a_par(results: Results) -> tuple[bool, Mapping[str, Any], Statistic]:
    deep = _losses(results, "highway", 100)
    against = {kind: _losses(results, kind, 10) for kind in ("plain", "highway")}
    ratios = {kind: median(deep) / median(losses) for kind, losses in against.items()}
    numbers: dict[str, Any] = {f"highway-100 / {kind}-10, medians": ratio for kind, ratio in ratios.items()}
    met = ratios["plain"] <= 10**0.5 and ratios["highway"] <= 10**-0.5
    return met, {**numbers, **_numbers(results)}, mann_whitney(deep, against["highway"])


def _always_better(results: Results) -> tuple[bool, Mapping[str, Any], Statistic]:
    """Decide whether highway networks are ahead at every depth; the statistic counts depths and seeds."""
    numbers: dict[str, Any] = {}
    ahead: list[bool] = []
    for depth in DEPTHS:
        plain, highway = _losses(results, "plain", depth), _losses(results, "highway", depth)
        numbers[f"{depth} layers: highway / plain"] = [h / p for p, h in zip(plain, highway, strict=True)]
        numbers[f"{depth} layers: exact p"] = mann_whitney(highway, plain).p
        ahead += [h < p for p, h in zip(plain, highway, strict=True)]
    seeds = len(ahead) // len(DEPTHS)
    whole = [all(ahead[seed::seeds]) for seed in range(seeds)]
    return all(ahead), {**numbers, **_numbers(results)}, sign_test(sum(whole), seeds)


def _first_layers_do_it(results: Results) -> tuple[bool, Mapping[str, Any], Statistic]:
    shares: dict[str, list[float]] = {}
    for name in ("changes_before", "changes"):
        profiles = results.column(name, kind="highway", depth=PROFILE_DEPTH)
        shares[name] = [sum(profile[:FIRST]) / max(sum(profile), LEAST) for profile in profiles]
    numbers = {
        "share of the change in the first 10 layers, trained": shares["changes"],
        "the same before training": shares["changes_before"],
        "the same if all layers changed alike": FIRST / (PROFILE_DEPTH - 1),
    }
    more = sum(share > 0.5 for share in shares["changes"])
    return more == len(shares["changes"]), {**numbers, **_numbers(results)}, sign_test(more, len(shares["changes"]))


def _none_beyond_twenty(results: Results) -> tuple[bool, Mapping[str, Any], Statistic]:
    columns = [results.column("error", **config) for config in results.configs]
    fails = [all(column[seed] >= 0.5 for column in columns) for seed in range(len(results.seeds))]
    return all(fails), _numbers(results), sign_test(sum(fails), len(fails))


def claims() -> list[Claim]:
    """Give the claims; criteria were written before the search for settings, and the notes say which one changed."""
    return [
        Claim(
            "plain networks degrade", "“Network training becomes more difficult with increasing depth.”",
            "training cross-entropy(plain-100) >= 100 times that of plain-10 in every seed", f"{SRIVASTAVA}, abstract",
            _plain_degrades, {"kind": "plain", "depth": (10, 100)}, paper_value="curves only",
        ),
        Claim(
            "highway networks of 100 layers train", "“Highway networks with hundreds of layers can be trained directly "
            "using stochastic gradient descent.”",
            "training cross-entropy(highway-100) <= 0.1 times that of plain-100 in every seed",
            f"{SRIVASTAVA}, abstract", _highway_trains, {"depth": 100}, paper_value="curves only",
        ),
        Claim(
            "100 gated layers are better than 10", "A highway network of 100 layers is about an order of magnitude "
            "better than one of 10, and on a par with a plain network of 10.",
            "medians over the seeds of training cross-entropy: highway-100 at most 10^0.5 times plain-10, and "
            "at most 10^-0.5 times highway-10", SRIVASTAVA, _on_a_par, {"depth": (10, 100)},
            paper_value="about 0.1 and about 1",
        ),
        Claim(
            "gates are always better", "A gate makes a deep network train better.",
            "training cross-entropy(highway) < training cross-entropy(plain) at 10, 20, 50 and 100 layers in every "
            "seed", "common in tutorials", _always_better,
            correction="Not always where plain networks train: in the paper the plain network of 10 layers is about an "
            "order of magnitude ahead.",
        ),
        Claim(
            "the first layers do it", "Of a trained highway network of 50 layers most of the change happens in about "
            "the first 10.", "|x' - x| / |x| summed over the first 10 of 49 highway layers, after training, is more "
            "than half of the sum over all, in every seed", SRIVASTAVA, _first_layers_do_it,
            {"kind": "highway", "depth": PROFILE_DEPTH}, paper_value="about 10 layers on MNIST",
        ),
        Claim(
            "nothing beyond 20 layers", "Before residual networks no network of more than about 20 layers could be "
            "trained.", "training error of plain and of highway networks of 50 and of 100 layers at least 50 % in "
            "every seed", "common in tutorials", _none_beyond_twenty, {"depth": (50, 100)},
            correction="Highway networks of 100 layers were trained seven months before (Srivastava et al. 2015).",
        ),
    ]  # fmt: skip
