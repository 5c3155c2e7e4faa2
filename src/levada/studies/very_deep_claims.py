"""What R10 claims."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeAlias

from levada.study import Claim, Results, Settings, Statistic, Undecided
from levada.study.statistics import paired_permutation_test, student_interval, wilson_interval

__all__ = ["HE", "HUANG", "SURVIVAL", "adjusted", "claims"]

HE = "He, Zhang, Ren and Sun 2015, arXiv 1512.03385"
HUANG = "Huang, Sun, Liu, Sedra and Weinberger 2016, arXiv 1603.09382"
SURVIVAL = 0.5  # of the last block
VERY_DEEP = 1000  # layers from which a result says something about 1,202
SIGNIFICANT, MARGIN = 0.05, 1.0  # points of test error
QUARTER, WITHIN = 0.25, 0.05

Decided: TypeAlias = tuple[bool | Undecided, dict[str, Any], Statistic | None]


def adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values: each is what the level of the whole family must be for its test to reject.

    Args:
        p_values: by name.

    Example:
        >>> adjusted({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}

    Source: Holm 1979.
    """
    found: dict[str, float] = {}
    least = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[name]))
        found[name] = least
    return found


def _errors(results: Results, part: str, depth: int, survival: float = 1.0) -> list[float]:
    return [100 * share for share in results.column(f"{part}_error", depth=depth, survival=survival)]


def _depths(results: Results) -> list[int]:
    return sorted({config["depth"] for config in results.configs})


def _arms(results: Results) -> dict[str, tuple[tuple[int, float], tuple[int, float]]]:
    """Give the family of comparisons: for each the arm that is said to err more, and the one said to err less."""
    shallow, middle, deepest = _depths(results)
    return {
        "the more layers the better": ((shallow, 1.0), (deepest, 1.0)),
        "the deepest overfits": ((deepest, 1.0), (middle, 1.0)),
        "stochastic depth improves the test error": ((deepest, 1.0), (deepest, SURVIVAL)),
        "with stochastic depth more layers pay": ((middle, SURVIVAL), (deepest, SURVIVAL)),
    }


def _words(arm: tuple[int, float]) -> str:
    return f"{arm[0]} layers, {'all blocks' if arm[1] == 1 else 'stochastic depth'}"


def _gains(results: Results, name: str) -> list[float]:
    """By how many points the second arm's test error is lower, for each seed."""
    worse, better = (_errors(results, "test", *arm) for arm in _arms(results)[name])
    return [a - b for a, b in zip(worse, better, strict=True)]


def _compared(results: Results, name: str) -> Decided:
    """Decide a comparison: a gain beyond chance, none of a point, or neither can be said."""
    tests = {other: _sign_flips(_gains(results, other)) for other in _arms(results)}
    p = adjusted({other: test.p or 0.0 for other, test in tests.items()})[name]
    gain = student_interval(_gains(results, name))
    low, high = _ends(gain)
    numbers: dict[str, Any] = {f"{_words(arm)}, test error, %": _errors(results, "test", *arm)
                               for arm in _arms(results)[name]}  # fmt: skip
    numbers |= {
        "mean gain, points": gain.value,
        "its 95 % interval, points": [low, high],
        f"p, adjusted for {len(tests)} comparisons": p,
    }
    met: bool | Undecided
    if p < SIGNIFICANT:
        met = gain.value > 0
    elif high < MARGIN:
        met = False
    else:
        met = Undecided(
            f"no gain beyond chance (p = {p:.2g}), and none of {MARGIN:g} point excluded: {low:.1f} to "
            f"{high:.1f} points"
        )
    return met, numbers, tests[name]


def _sign_flips(gains: list[float]) -> Statistic:
    return paired_permutation_test(gains, [0.0] * len(gains))


def _ends(interval: Statistic) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def _powerful(results: Results) -> Decided:
    met, numbers, test = _compared(results, "the more layers the better")
    middle = _depths(results)[1]
    numbers[f"{middle} layers, all blocks, test error, %"] = _errors(results, "test", middle)
    means = [fmean(_errors(results, "test", depth)) for depth in _depths(results)]
    if met is True and not all(deeper < shallower for shallower, deeper in pairwise(means)):
        met = Undecided(f"the deepest gain, and the mean error does not fall at each step: {means}")
    return met, numbers, test


def _very_deep(results: Results, decided: Decided) -> Decided:
    """Leave a statement on 1,202 layers undecided where no network here is nearly as deep."""
    met, numbers, test = decided
    deepest = max(_depths(results))
    if deepest < VERY_DEEP:
        met = Undecided(f"the deepest network of this run has {deepest} layers, and the statement is about 1,202")
    return met, numbers, test


def _optimised(results: Results) -> Decided:
    found = {depth: _errors(results, "train", depth) for depth in _depths(results)}
    numbers = {f"{depth} layers, training error, %": errors for depth, errors in found.items()}
    return _very_deep(results, (not any(map(any, found.values())), numbers, None))


def _overfits(results: Results) -> Decided:
    met, numbers, test = _compared(results, "the deepest overfits")
    fitted = {depth: _errors(results, "train", depth) for depth in _depths(results)[1:]}
    numbers |= {f"{depth} layers, training error, %": errors for depth, errors in fitted.items()}
    if any(map(any, fitted.values())):
        met = Undecided("not all of the networks fit the training set")
    return _very_deep(results, (met, numbers, test))


def _dropping_helps(results: Results) -> Decided:
    return _compared(results, "stochastic depth improves the test error")


def _deeper_helps(results: Results) -> Decided:
    return _very_deep(results, _compared(results, "with stochastic depth more layers pay"))


def _no_loss(results: Results) -> Decided:
    """Decide whether a loss of a point or more is excluded at every depth, or a loss is certain at one."""
    numbers: dict[str, Any] = {}
    excluded, certain = [], []
    for depth in _depths(results):
        random, whole = _errors(results, "test", depth, SURVIVAL), _errors(results, "test", depth)
        loss = [a - b for a, b in zip(random, whole, strict=True)]
        # Each depth alone could say that there is a loss: the three share the level.
        low, high = _ends(student_interval(loss, confidence=1 - SIGNIFICANT / len(_depths(results))))
        excluded.append(high < MARGIN)
        certain.append(low > 0)
        numbers[f"{depth} layers, loss, points"] = loss
        numbers[f"{depth} layers, interval of the mean loss, points"] = [low, high]
        numbers[f"{depth} layers, stochastic depth, training error, %"] = _errors(results, "train", depth, SURVIVAL)
    if all(excluded):
        return True, numbers, None
    if any(certain):
        return False, numbers, None
    return Undecided(f"neither is a loss of {MARGIN:g} point excluded at every depth, nor is there one"), numbers, None


def _saves(results: Results) -> Decided:
    numbers: dict[str, Any] = {}
    met = []
    for config in results.configs:
        values = [found for _, found in results.where(**config)]
        blocks = values[0]["blocks"]
        asked = blocks * config["steps"] * len(values)
        left_out = wilson_interval(asked - sum(found["evaluations"] for found in values), asked, 0.99)
        low, high = _ends(left_out)
        met.append(QUARTER - WITHIN < low <= high < QUARTER + WITHIN)
        depth = config["depth"]
        numbers[f"{depth} layers, share left out, all seeds"] = left_out.value
        numbers[f"{depth} layers, its 99 % interval"] = [low, high]
        numbers[f"{depth} layers, expected, (L + 1)/(4 L)"] = (blocks + 1) / (4 * blocks)
    return all(met), numbers, None


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; depths are the settings'."""
    depths, count = sorted(settings["depths"]), settings["examples"]
    shallow, middle, deepest = depths
    every = ", ".join(map(str, depths[:-1])) + f" and {deepest:,}"
    rule = (
        f"held where the exact sign-flip test of the seeds' differences, adjusted by Holm for the four comparisons of "
        f"this study, has p < {SIGNIFICANT}; not held where it has so the other way, or where the 95 % interval of the "
        f"mean gain ends below {MARGIN:g} point; else not decided"
    )
    deep = f"; not decided with fewer than {VERY_DEEP:,} layers"
    return [
        Claim(
            "the more layers the better", "“The more layers you add, the more powerful.”",
            f"{count} training signals, test error of {deepest:,} layers against {shallow}: {rule}; mean test error "
            f"must fall from {shallow} to {middle} as well", "common in tutorials", _powerful,
            paper_value="CIFAR-10: 8.75, 6.43, 7.93 % at 20, 110, 1202 layers",
            correction="More layers can express more; what training makes of them is another matter.",
        ),
        Claim(
            "the deepest can be trained", "A residual network of 1,202 layers is optimised without difficulty.",
            f"not one of {count} training signals wrong with {every} layers, in every seed{deep}", HE, _optimised,
            {"survival": 1.0}, paper_value="CIFAR-10: below 0.1 % at 1202 layers",
        ),
        Claim(
            "the deepest overfits", "A network of 1,202 layers tests worse than one of 110, though both fit the "
            "training set.", f"test error of {middle} layers against {deepest:,}: {rule}{deep}", HE, _overfits,
            paper_value="CIFAR-10: 7.93 against 6.43 %",
            correction="Others measured 6.72 % (Huang et al.) and 6.18 % (akamaster's code, best epoch on the test "
            "set) at 1202 layers: the paper's number is no law.",
        ),
        Claim(
            "stochastic depth improves the test error", "Stochastic depth “improves the test error significantly”.",
            f"{deepest:,} layers, test error with stochastic depth against that with all blocks: {rule}", HUANG,
            _dropping_helps,
            paper_value="CIFAR-10, 1202 layers: 4.91 against 6.72 %",
        ),
        Claim(
            "with stochastic depth more layers pay", "“With stochastic depth we can increase the depth of residual "
            "networks even beyond 1200 layers and still yield meaningful improvements in test error.”",
            f"with stochastic depth, test error of {deepest:,} layers against {middle}: {rule}{deep}", HUANG,
            _deeper_helps, paper_value="CIFAR-10: 4.91 % at 1202 layers, 5.25 % at 110",
        ),
        Claim(
            "stochastic depth costs no accuracy", "To leave out a quarter of the blocks in training costs no accuracy.",
            "test error with stochastic depth less that with all blocks, Student's interval of the mean at a "
            f"confidence of 1 - .05/3: held where it ends below {MARGIN:g} point at each of {every} layers; else not "
            "held where it begins above 0 at one of them; else not decided", HUANG, _no_loss,
        ),
        Claim(
            "stochastic depth saves a quarter", "A quarter of the blocks' evaluations is saved in training.",
            f"the 99 % binomial interval of the share of blocks left out, all seeds and steps together, lies within "
            f"{100 * WITHIN:g} points of {QUARTER:.0%} with {every} layers", HUANG, _saves, {"survival": SURVIVAL},
            paper_value="about 40 of 54 blocks run",
            correction="A quarter need not be evaluated: (L + 1)/(4 L) of L blocks on average, .278 at 20 layers. What "
            "is counted here is blocks left out: networks of several seeds share each convolution, so that these "
            "blocks are computed and multiplied by zero, and this implementation saves no time.",
        ),
    ]  # fmt: skip
