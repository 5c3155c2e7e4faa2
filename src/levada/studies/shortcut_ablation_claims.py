"""What R6 claims."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from types import ModuleType
from typing import Any, final

from levada._errors import import_extra
from levada.study import Claim, Results, Statistic, Undecided
from levada.study.shortcut_networks import Shortcut
from levada.study.statistics import cliffs_delta, mann_whitney, sign_test, student_interval

__all__ = ["FAIL", "HE", "KINDS", "Kind", "claims"]

HE = "He, Zhang, Ren and Sun 2016, arXiv 1603.05027"
FAIL = 20.0  # %, test error: "fail" in the table is more than that
TRAINS = 5.0  # %, training error of the identity, mean over seeds: above, the budget orders nothing


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the paper's table 1.

    Attributes:
        shortcut: the shortcut.
        paper: test error of ResNet-110 on CIFAR-10, %; `FAIL` where it is "fail".
        only_full: whether the scale full alone has it.
    """

    shortcut: Shortcut
    paper: float
    only_full: bool = False


KINDS = {
    "identity": Kind(Shortcut("constant", 1.0), 6.61),
    "shortcut gate, bias -6": Kind(Shortcut("shortcut gate", -6.0), 6.91),
    "exclusive gate, bias -6": Kind(Shortcut("exclusive gate", -6.0), 8.70),
    "exclusive gate, bias -7": Kind(Shortcut("exclusive gate", -7.0), 9.81, only_full=True),
    "convolution": Kind(Shortcut("convolution"), 12.22),
    "half of both": Kind(Shortcut("constant", 0.5, 0.5), 12.35),
    "shortcut gate, bias 0": Kind(Shortcut("shortcut gate", 0.0), 12.86),
    "exclusive gate, bias -5": Kind(Shortcut("exclusive gate", -5.0), FAIL, only_full=True),
    "exclusive gate, bias 0": Kind(Shortcut("exclusive gate", 0.0), FAIL),
    "half of the shortcut": Kind(Shortcut("constant", 0.5), FAIL),
    "dropout": Kind(Shortcut("dropout", 0.5), FAIL),
    "no shortcut": Kind(Shortcut("constant", 0.0), FAIL),
}
# From best to worst; within a group the order is open.
GROUPS = (
    ("identity",),
    ("shortcut gate, bias -6",),
    ("exclusive gate, bias -6",),
    ("convolution", "half of both", "shortcut gate, bias 0"),
    ("exclusive gate, bias 0", "half of the shortcut", "dropout", "no shortcut"),
)
ORDERED = tuple(kind for group in GROUPS for kind in group)
HALVING = ("half of the shortcut", "half of both", "exclusive gate, bias 0", "shortcut gate, bias 0", "dropout")
GATED = ("exclusive gate, bias 0", "shortcut gate, bias 0")  # those of them that could pass more than 2^-blocks
OPEN = ("identity", "shortcut gate, bias -6", "exclusive gate, bias -6")
NOTHING, MUCH = 1e-15, 0.1
LEAST_TAU = 0.7
UNLESS = f"; not decided while the identity's mean training error is above {TRAINS:g} %"
EXCLUSIVE = tuple(kind for kind in KINDS if kind.startswith("exclusive"))


def _kinds(results: Results) -> list[str]:
    return [config["kind"] for config in results.configs]


def _errors(results: Results, name: str = "train_error") -> dict[str, list[float]]:
    return {kind: [100 * share for share in results.column(name, kind=kind)] for kind in _kinds(results)}


def _numbers(results: Results) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in _kinds(results):
        for name, label in (("train_error", "training error %"), ("test_error", "test error %")):
            found[f"{kind}: {label}"] = [100 * share for share in results.column(name, kind=kind)]
        found[f"{kind}: learning rate"] = results.column("lr", kind=kind)[0]
    return found


def _is_ordered(errors: Mapping[str, float]) -> bool:
    return all(
        max(errors[kind] for kind in better) < min(errors[kind] for kind in worse)
        for better, worse in itertools.pairwise(GROUPS)
    )


def _unless_untrained(met: bool, results: Results) -> bool | Undecided:
    """Decide nothing where the identity itself did not come to train."""
    mean = fmean(_errors(results)["identity"])
    if mean <= TRAINS:
        return met
    return Undecided(
        f"the identity's mean training error is {mean:.1f} %, and the budget orders kinds below {TRAINS:g}"
    )


def _ordered(results: Results) -> tuple[bool | Undecided, Mapping[str, Any], Statistic]:
    errors = _errors(results)
    seeds = range(len(results.seeds))
    alike = sum(_is_ordered({kind: column[seed] for kind, column in errors.items()}) for seed in seeds)
    means = {kind: fmean(column) for kind, column in errors.items()}
    order = sorted(means, key=means.__getitem__)
    numbers = {"from best to worst": " < ".join(f"{kind} ({means[kind]:.2f} %)" for kind in order)}
    met = _unless_untrained(_is_ordered(means), results)
    return met, {**numbers, **_numbers(results)}, sign_test(alike, len(results.seeds))


def _agrees(results: Results) -> tuple[bool | Undecided, Mapping[str, Any], Statistic]:
    errors, kinds = _errors(results, "test_error"), _kinds(results)
    paper = [KINDS[kind].paper for kind in kinds]
    taus = [_tau(paper, [errors[kind][seed] for kind in kinds]) for seed in range(len(results.seeds))]
    mean = _tau(paper, [fmean(errors[kind]) for kind in kinds])
    numbers = {
        "Kendall's tau-b of the mean test errors": mean,
        "of each seed's": taus,
        "the largest that the paper's ties allow": _tau(sorted(paper), [float(place) for place in range(len(kinds))]),
        "kinds": len(kinds),
    }
    met = _unless_untrained(mean >= LEAST_TAU, results)
    return met, {**numbers, **_numbers(results)}, student_interval(taus, "the seeds' tau-b")


def _tau(paper: list[float], errors: list[float]) -> float:
    stats: ModuleType = import_extra("scipy.stats", "study", "Kendall's tau")
    return float(stats.kendalltau(paper, errors, variant="b").statistic)


def _others_are_worse(results: Results) -> tuple[bool | Undecided, Mapping[str, Any], Statistic]:
    """Decide whether shortcuts that could be the identity train worse; the statistic is of the closer one."""
    errors = _errors(results)
    identity = errors.pop("identity")
    met = all(o > i for column in errors.values() for i, o in zip(identity, column, strict=True))
    numbers = {f"{kind}: Cliff's delta to the identity": cliffs_delta(c, identity) for kind, c in errors.items()}
    closest = min(errors.values(), key=fmean)
    return _unless_untrained(met, results), {**numbers, **_numbers(results)}, mann_whitney(closest, identity)


def _gates_are_as_good(results: Results) -> tuple[bool | Undecided, Mapping[str, Any], Statistic]:
    errors = _errors(results)
    identity = errors.pop("identity")
    best = min(errors, key=lambda kind: fmean(errors[kind]))
    apart = [e - i for e, i in zip(errors[best], identity, strict=True)]
    numbers = {"best of the exclusive gates": best, "its training error less the identity's, points": apart}
    interval = student_interval(apart, f"the difference of means, points ({best})")
    return _unless_untrained(fmean(apart) <= 1, results), {**numbers, **_numbers(results)}, interval


def _blocked(results: Results) -> tuple[bool, Mapping[str, Any], None]:
    """Decide on gradients of kinds whose factors are not constants; what the others pass is arithmetic."""
    numbers: dict[str, Any] = {}
    met = True
    for config in results.configs:
        kind = config["kind"]
        numbers[f"{kind}: gradient first/last through shortcuts alone"] = _ratios(results, "shortcut_gradient", kind)
        numbers[f"{kind}: gain of the shortcuts without ReLUs, gates held"] = results.column("shortcut_gain", kind=kind)
        numbers[f"{kind}: the same where gates stay at their biases"] = KINDS[kind].shortcut.gain(config["blocks"])
    for kind in (*GATED, *OPEN):
        ratios = _ratios(results, "shortcut_gradient", kind)
        met = met and (max(ratios) <= NOTHING if kind in GATED else min(ratios) >= MUCH)
    return met, numbers, None


def _ratios(results: Results, name: str, kind: str) -> list[float]:
    return [profile[0] for profile in results.column(name, kind=kind)]


def _vanishes(results: Results) -> tuple[bool, Mapping[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met = [True] * len(results.seeds)
    for kind in _kinds(results):
        numbers[f"{kind}: gradient first/last"] = ratios = _ratios(results, "gradient", kind)
        met = [before and ratio < 1 for before, ratio in zip(met, ratios, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def claims() -> list[Claim]:
    """Give the claims; the study's notes say which criteria a review changed before the run that is reported."""
    return [
        Claim(
            "the table's order", "The identity is best, gates that begin open come next, shortcuts that are scaled, "
            "convolved or half closed are worse, and without a whole shortcut the network fails.",
            "mean training error: identity < shortcut gate (bias -6) < exclusive gate (bias -6) < {convolution, half "
            "of both, shortcut gate (bias 0)} < {exclusive gate (bias 0), half of the shortcut, dropout, no shortcut}"
            + UNLESS,
            f"{HE}, table 1", _ordered, {"kind": ORDERED},
            paper_value="test error of ResNet-110 on CIFAR-10, %: 6.61 < 6.91 < 8.70 < {12.22, 12.35, 12.86} < {fail: "
            "more than 20, four times}",
        ),
        Claim(
            "as in the table", "The ranks of the shortcuts do not depend on the data set.",
            f"Kendall's tau-b between mean test errors and the paper's at least {LEAST_TAU} (four fail there and are "
            "tied: tau-b is at most 0.93)" + UNLESS, "this project", _agrees,
        ),
        Claim(
            "to be able is not to learn", "A gate on the shortcut and a convolution on it could be the identity, and "
            "train worse: the difficulty is to optimise, not to represent.",
            "training error(shortcut gate, bias 0) and training error(convolution) > training error(identity) in every "
            "seed" + UNLESS, f"{HE}, section 3", _others_are_worse,
            {"kind": ("identity", "shortcut gate, bias 0", "convolution")}, paper_value="test error 12.86 and 12.22 %, "
            "identity 6.61 %",
        ),
        Claim(
            "gates train as well as the identity", "Residual networks are a special case of highway networks, so that "
            "gates lose nothing.",
            "mean training error of the best exclusive gate, over its biases, <= that of the identity + 1 point"
            + UNLESS, "common in essays on depth", _gates_are_as_good, {"kind": ("identity", *EXCLUSIVE)},
            paper_value="test error 8.70 % at best, identity 6.61 %",
            correction="A special case up to a factor: with the gate T held and the branch F (1 - T) / T a highway "
            "block gives (1 - T) (x + F), a residual block times 1 - T, which is as near to 1 as T is to 0, and is "
            "never 1. That a network could represent it does not say that it trains as well.",
        ),
        Claim(
            "the shortcut passes nothing", "Gates that begin half open let nothing pass through 54 blocks, and those "
            "that begin open let much pass.",
            "before training, float64, ReLUs and gates as they are, in every seed: gradient first/last through the "
            f"shortcuts alone at most {NOTHING:g} for the two gates of bias 0 (2^-54 = 5.6e-17 where gates stay at "
            f"their biases), at least {MUCH:g} for the identity and for gates of bias -6", f"{HE}, section 3",
            _blocked, {"kind": HALVING + OPEN},
        ),
        Claim(
            "and so the gradient vanishes", "Where the shortcut passes nothing, the first block gets no gradient.",
            "before training, float64, in every seed: the whole gradient first/last < 1 for half shortcuts, gates of "
            "bias 0, dropout and no shortcut", "common in tutorials", _vanishes, {"kind": (*HALVING, "no shortcut")},
            correction="It takes the way through the branches, where batch normalisation makes it grow before "
            "training: without a whole shortcut it explodes.",
        ),
    ]  # fmt: skip
