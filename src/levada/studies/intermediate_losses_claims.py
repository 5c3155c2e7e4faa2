"""What R16 claims: one sentence of one source each, with the criterion that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from levada.study import Claim, Results, Statistic
from levada.study.statistics import sign_test

__all__ = ["AL_RFOU", "ARMS", "DSN", "SOGAARD", "claims", "paired_bootstrap"]

DSN = "Lee et al. 2015, arXiv 1409.5185 (deeply-supervised nets)"
SOGAARD = "Søgaard and Goldberg 2016, ACL (P16-2038)"
AL_RFOU = "Al-Rfou et al. 2018, arXiv 1808.04444"
ARMS = ("supervised", "plain", "ReZero")
LEAST_GAIN, TRAINS, STALLS = 1e8, 0.5, 0.15
# Three times chance, as for the sigmoid networks it is five times: fixed for each before the run, and left as it was.
SIGNAL_TRAINS = 0.3


def _gradient(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    without = [profile[1] for profile in results.column("gradient")]  # [0] is the map in
    supervised = [profile[1] for profile in results.column("supervised_gradient")]
    ratios = [b / a if a else float("inf") for a, b in zip(without, supervised, strict=True)]
    met = [ratio >= LEAST_GAIN for ratio in ratios]
    numbers = {
        "layer 1, gradient without intermediate losses": without,
        "layer 1, gradient with them": supervised,
        "ratio": ratios,
        "smallest of any layer with them": [min(profile[1:]) for profile in results.column("supervised_gradient")],
    }
    return all(met), numbers, sign_test(sum(met), len(met))


def _output_learns(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    output = results.column("accuracy", arm="supervised")
    numbers: dict[str, Any] = {"output, accuracy": output}
    places = results.column("heads", arm="supervised")[0]
    for i, place in enumerate(places):
        found = [heads[i] for heads in results.column("head_accuracy", arm="supervised")]
        numbers[f"head after layer {place}, accuracy"] = found
    numbers["without intermediate losses, accuracy"] = results.column("accuracy", arm="plain")
    met = [accuracy >= TRAINS for accuracy in output]
    return all(met), numbers, sign_test(sum(met), len(met))


def _rescued(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    plain, supervised = (results.column("accuracy", arm=arm) for arm in ("plain", "supervised"))
    met = [p <= STALLS and s >= SIGNAL_TRAINS for p, s in zip(plain, supervised, strict=True)]
    first = [profile[0] for profile in results.column("gradient", arm="supervised")]
    together = [profile[0] for profile in results.column("supervised_gradient", arm="supervised")]
    numbers = {
        "plain, accuracy": plain,
        "with intermediate losses, accuracy": supervised,
        "first layer, gradient without them": first,
        "first layer, gradient with them": together,
    }
    return all(met), numbers, sign_test(sum(met), len(met))


def _skips_do_as_much(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met = [True] * len(results.seeds)
    for network in ("sigmoid", "convolutional"):
        rezero, supervised = (results.column("accuracy", network=network, arm=arm) for arm in ("ReZero", "supervised"))
        numbers[f"{network}: ReZero, accuracy"] = rezero
        numbers[f"{network}: plain with intermediate losses, accuracy"] = supervised
        met = [m and r >= s for m, r, s in zip(met, rezero, supervised, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def paired_bootstrap(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], tokens: Sequence[int], num_samples: int = 10_000
) -> Statistic:
    """Interval of a difference in accuracy, over test sentences drawn with replacement; 95 %, by percentiles.

    Args:
        first: for each seed, how many tokens of each sentence are right.
        second: the same, of what it is compared with.
        tokens: how many tokens each sentence has.
        num_samples: number of resamples.

    Returns:
        The difference in percentage points, mean over seeds, and its interval.

    Example:
        >>> found = paired_bootstrap([[3, 2], [3, 2]], [[2, 1], [2, 1]], [4, 4], 100)
        >>> found.value, found.low, found.high
        (25.0, 25.0, 25.0)
    """
    import numpy

    apart = (numpy.array(first) - numpy.array(second)).mean(0)
    lengths = numpy.array(tokens)
    drawn = numpy.random.default_rng(0).multinomial(len(lengths), [1 / len(lengths)] * len(lengths), num_samples)
    samples = 100 * (drawn @ apart) / (drawn @ lengths)
    low, high = numpy.percentile(samples, (2.5, 97.5))
    value = 100 * apart.sum() / lengths.sum()
    name = "paired bootstrap over sentences, mean of seeds, 95 %, points"
    return Statistic(name, float(value), low=float(low), high=float(high))


def _lower(results: Results, other: int | None, name: str) -> tuple[bool, dict[str, Any], Statistic]:
    tokens = results.column("tokens")[0]
    found = {site: results.column("correct", site=site) for site in (0, other)}
    accuracy = {site: [100 * sum(own) / sum(tokens) for own in counts] for site, counts in found.items()}
    apart = [a - b for a, b in zip(accuracy[0], accuracy[other], strict=True)]
    interval = paired_bootstrap(found[0], found[other], tokens)
    numbers = {
        "parts of speech at the first layer, accuracy %": accuracy[0],
        f"{name}, accuracy %": accuracy[other],
        "difference by seed, points": apart,
        "difference, mean": fmean(apart),
    }
    return all(a > 0 for a in apart) and (interval.low or 0.0) > 0, numbers, interval


def _over_none(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    return _lower(results, None, "no intermediate loss")


def _over_outermost(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    return _lower(results, 2, "parts of speech at the third layer")


_SIGMOID = {"measures": "depth", "network": "sigmoid"}
_DELTA = "difference in accuracy of relations above 0 in every seed, and its interval above 0"
_CLAIMS = (
    Claim("the gradient reaches the first layer", "Losses at inner layers bring the gradient to the first ones.",
          f"20 sigmoid layers, before training: gradient of layer 1's parameters at least {LEAST_GAIN:g} times as "
          "large as without, in every seed", f"{DSN}, abstract", _gradient, {**_SIGMOID, "arm": "supervised"}),
    Claim("and so the output learns", "With intermediate losses a very deep plain network trains.",
          f"the same networks, trained: test accuracy of the output at least {TRAINS:.0%} in every seed",
          f"{DSN}, abstract", _output_learns, {**_SIGMOID, "arm": ("supervised", "plain")}),
    Claim("plain stalls, supervised trains", "A deep rectified network whose weights begin as small Gaussians does "
          "not train plain, and does with intermediate losses.", "12 convolutional layers: test accuracy of the output "
          f"at most {STALLS:.0%} without, and at least {SIGNAL_TRAINS:.0%} with them, in every seed (the sigmoid "
          f"networks must come to {TRAINS:.0%}; both thresholds were fixed before the run)", f"{DSN}", _rescued,
          {"measures": "depth", "network": "convolutional", "arm": ("supervised", "plain")},
          paper_value="11 layers on ImageNet: a gradient of 1e-10 in the first layer without them"),
    Claim("skips do as much", "Residual connections that begin at zero train the same networks without intermediate "
          "losses.", "test accuracy of the output with ReZero at least that of the plain network with intermediate "
          "losses, in both networks and every seed", "Bachlechner et al. 2021, arXiv 2003.04887", _skips_do_as_much,
          {"measures": "depth", "arm": ("supervised", "ReZero")},
          paper_value="enwik8: 1.08 bits per character without them, 1.06 with them (Al-Rfou et al.)"),
    Claim("a low task helps at the innermost layer", "Parts of speech, learned at the first layer, help to learn "
          "syntax.", _DELTA, f"{SOGAARD}", _over_none, {"measures": "tagging", "site": (0, None)}),
    Claim("innermost rather than outermost", "Parts of speech supervise better at the innermost layer than at the "
          "outermost.", _DELTA, f"{SOGAARD}, abstract", _over_outermost, {"measures": "tagging", "site": (0, 2)}),
)  # fmt: skip


def claims() -> list[Claim]:
    """Return the claims."""
    return list(_CLAIMS)
