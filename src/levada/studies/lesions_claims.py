"""What R7 claims: one sentence of one source each, with the criterion that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import comb, log10, sqrt
from statistics import fmean, median
from typing import Any

from levada.study import Claim, Results, Settings, Statistic, Undecided
from levada.study.path_gradients import number_times_norm
from levada.study.statistics import mann_whitney, sign_test, spearman, student_interval
from levada.theory import batch_norm_residual_gradient, path_lengths

__all__ = ["VEIT", "claims", "exact_shares", "predicted_shares"]

VEIT = "Veit, Wilber and Belongie 2016, arXiv 1605.06431"
LITTLE, MUCH, MOST = 2.0, 10.0, 0.75  # points of test error, and the share of blocks
BROKEN = 50.0
HALF_CHANCE = 0.45
ORDERED, CLIFF = 0.9, 0.25
CHANCE = 0.9
SHORT, MEAN, MASS = 20, 15.0, 0.9
STRAIGHT = 0.95
LAW = 0.1
SAME = 0.2
POINT = 1.0
TRAINS = 5.0  # %, mean training error: above, what trains with some of the blocks has not been trained to the end
SQUARED, TWICE = range(1, 4), 2.0
STEP = f"no step between neighbours above {CLIFF:.0%} of the way from the whole network's error to chance"
TRAINED = "the trained network of {} blocks"


def _rises(results: Results, **fields: Any) -> list[list[float]]:
    """Points of test error that each block's deletion costs, by seed."""
    return [
        [100 * (after - values["test_error"]) for after in values["single"]] for _, values in results.where(**fields)
    ]


def _harmless(rises: Sequence[float]) -> bool:
    return median(rises) <= LITTLE and fmean(rise <= MUCH for rise in rises) >= MOST


def _told(rises: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {
        "median rise, points": [median(own) for own in rises],
        f"share of blocks whose rise is at most {MUCH:.0f} points": [fmean(r <= MUCH for r in own) for own in rises],
        "largest rise, points": [max(own) for own in rises],
        "rise without the first block, points": [own[0] for own in rises],
    }


def _most_can_go(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    rises = _rises(results)
    met = [_harmless(own) for own in rises]
    return all(met), {"test error, %": _percent(results), **_told(rises)}, sign_test(sum(met), len(met))


def _at_any_depth(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for config in sorted(results.configs, key=lambda config: int(config["depth"])):
        rises = _rises(results, **config)
        met = [before and _harmless(own) for before, own in zip(met, rises, strict=True)]
        numbers |= {f"{len(rises[0])} blocks: {name}": values for name, values in _told(rises).items()}
    return all(met), numbers, sign_test(sum(met), len(met))


def _plain_needs_each(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    plain, residual = _rises(results, kind="plain"), _rises(results, kind="residual")
    medians, others = [median(own) for own in plain], [median(own) for own in residual]
    numbers = {
        "plain, median rise, points": medians,
        "plain, smallest rise, points": [min(own) for own in plain],
        "residual, median rise, points": others,
        "plain, test error, %": _percent(results, kind="plain"),
    }
    return min(medians) >= BROKEN, numbers, mann_whitney(medians, others)


def _percent(results: Results, name: str = "test_error", **fields: Any) -> list[float]:
    return [100 * share for share in results.column(name, **fields)]


def _smoothly(
    results: Results, found: Sequence[tuple[Sequence[float], list[float]]], amount: str
) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether errors, means over draws, rise with the amount of damage, begin low and have no cliff, by seed."""
    ranks = [spearman(amounts, errors) for amounts, errors in found]
    numbers: dict[str, Any] = {"rank correlation": ranks}
    for place, damage in enumerate(found[0][0]):
        numbers[f"{amount} {damage:.3g}: test error, %"] = [100 * errors[place] for _, errors in found]
    steps = [
        max(after - before for before, after in pairwise([whole, *errors])) / (CHANCE - whole)
        for whole, (_, errors) in zip(results.column("test_error"), found, strict=True)
    ]
    numbers["largest step between neighbours, share of the way to chance"] = steps
    met = [
        rank >= ORDERED and errors[1] < HALF_CHANCE and step <= CLIFF
        for rank, step, (_, errors) in zip(ranks, steps, found, strict=True)
    ]
    return all(met), numbers, sign_test(sum(met), len(met))


def _deletions(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    found = [(v["deleted_number"], [fmean(draws) for draws in v["deleted"]]) for _, v in results.where()]
    return _smoothly(results, found, "blocks deleted:")


def _swaps(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    found = [
        ([fmean(draws) for draws in v["disorder"]], [fmean(draws) for draws in v["swapped"]])
        for _, v in results.where()
    ]
    return _smoothly(results, found, "share of pairs in the wrong order:")


def exact_shares(norms: Sequence[float]) -> list[float]:
    """Return each length's share of the sum of norms.

    Args:
        norms: by length.

    Example:
        >>> exact_shares([1.0, 3.0])
        [0.25, 0.75]
    """
    whole = sum(norms)
    return [norm / whole for norm in norms]


def _mean(shares: Sequence[float]) -> float:
    return sum(length * share for length, share in enumerate(shares))


def _short_paths(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shares = [number_times_norm(norms) for norms in results.column("single_path")]
    means, mass = [_mean(own) for own in shares], [sum(own[:SHORT]) for own in shares]
    uniform = path_lengths([1.0] * (len(shares[0]) - 1))
    numbers = {
        "mean length, blocks": means,
        "its standard error over the paths drawn, blocks": [
            _path_noise(norms, noise)
            for norms, noise in zip(results.column("single_path"), results.column("single_path_noise"), strict=True)
        ],
        f"share below {SHORT} blocks": mass,
        "share of 5 to 17 blocks": [sum(own[5:18]) for own in shares],
        "mean length of all paths": uniform.mean,
        "share of 5 to 17 blocks among all paths": uniform.share(5, 17),
    }
    met = [m <= MEAN and s >= MASS for m, s in zip(means, mass, strict=True)]
    return all(met), numbers, student_interval(means, "the mean length, blocks")


def _path_noise(norms: Sequence[float], noise: Sequence[float]) -> float:
    """Standard error of the mean length by number times norm, from those of the norms."""
    shares = number_times_norm(norms)
    centre = _mean(shares)
    parts = [
        share * (length - centre) * error / norm
        for length, (share, norm, error) in enumerate(zip(shares, norms, noise, strict=True))
    ]
    return sqrt(sum(part**2 for part in parts))


def _exponential(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    slopes, fits = [], []
    for norms in results.column("single_path"):
        slope, fit = _line([log10(norm) for norm in norms])
        slopes.append(slope)
        fits.append(fit)
    numbers = {"decades per branch": slopes, "share of the variance that a line explains": fits}
    met = [slope < 0 and fit >= STRAIGHT for slope, fit in zip(slopes, fits, strict=True)]
    return all(met), numbers, student_interval(slopes, "the slope, decades per branch")


def _line(values: Sequence[float]) -> tuple[float, float]:
    """Slope of a line through values at 0, 1, ..., and the share of their variance that it explains."""
    centre, level = (len(values) - 1) / 2, fmean(values)
    along = sum((i - centre) * (value - level) for i, value in enumerate(values))
    width = sum((i - centre) ** 2 for i in range(len(values)))
    return along / width, along**2 / width / sum((value - level) ** 2 for value in values)


def _norms_add(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    bound = [_mean(number_times_norm(norms)) for norms in results.column("single_path")]
    exact = [exact_shares(norms) for norms in results.column("together")]
    means = [_mean(own) for own in exact]
    ratios = [e / b for e, b in zip(means, bound, strict=True)]
    numbers = {
        "mean length by number times norm, blocks": bound,
        "mean length by the norm of the sum, blocks": means,
        "mean length by additive shares of the gradient, blocks": [_mean(own) for own in results.column("additive")],
        "share of 5 to 17 blocks by additive shares": [sum(own[5:18]) for own in results.column("additive")],
        "share of 5 to 17 blocks by the norm of the sum": [sum(own[5:18]) for own in exact],
        f"share below {SHORT} blocks by the norm of the sum": [sum(own[:SHORT]) for own in exact],
    }
    met = all(abs(ratio - 1) <= SAME for ratio in ratios)
    return met, numbers, student_interval(ratios, "the ratio of the two means")


def _squares_add(results: Results) -> tuple[bool, dict[str, Any], None]:
    """Decide whether the squared norm of a sum is that of a path times their number, before and after training."""
    numbers: dict[str, Any] = {}
    met = True
    for measures, name in (("untrained", "before training"), ("lesions", "after")):
        for length in SQUARED:
            ratios = [
                v["together_squared"][length]
                / (comb(len(v["together_squared"]) - 1, length) * v["single_path_squared"][length])
                for _, v in results.where(measures=measures)
            ]
            numbers[f"{name}, {length} blocks: squared norm of the sum over number times squared norm"] = ratios
            met = met and all(1 / TWICE <= ratio <= TWICE for ratio in ratios)
        means = [_mean(own) for own in results.column("additive", measures=measures)]
        numbers[f"{name}: mean length by additive shares of the gradient, blocks"] = means
    return met, numbers, None


def predicted_shares(num_blocks: int) -> list[float]:
    """Return the share of each length in the squared gradient, before training, in closed form.

    Args:
        num_blocks: of two layers each, with batch normalisation.

    Example:
        >>> shares = predicted_shares(54)
        >>> round(sum(length * share for length, share in enumerate(shares)), 2)
        6.25
    """
    profile = batch_norm_residual_gradient(num_blocks, branch_layers=2)
    gains = ((profile[:-1] / profile[1:]).square() - 1).clamp(min=0).sqrt()
    return path_lengths(gains.tolist()).weights.tolist()


def _law(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shares = [exact_shares(squares) for squares in results.column("together_squared")]
    predicted = _mean(predicted_shares(len(shares[0]) - 1))
    means = [_mean(own) for own in shares]
    additive = [_mean(own) for own in results.column("additive")]
    numbers = {"mean length, blocks": means, "predicted": predicted, "by additive shares, blocks": additive}
    met = all(abs(mean / predicted - 1) <= LAW for mean in means)
    return met, numbers, student_interval(means, "the mean length, blocks")


def _half(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    half = {"measures": "half"}
    whole, part = _percent(results, measures="lesions"), _percent(results, **half)
    apart = [b - a for a, b in zip(whole, part, strict=True)]
    numbers = {
        "trained with all blocks, test error, %": whole,
        "trained with some, test error, %": part,
        "trained with all blocks, training error, %": _percent(results, "train_error", measures="lesions"),
        "trained with some, training error, %": _percent(results, "train_error", **half),
        "trained with some, all blocks in full at the test, test error, %": _percent(
            results, "unweighted test_error", **half
        ),
    }
    met: bool | Undecided = all(abs(d) <= POINT for d in apart)
    error = fmean(_percent(results, "train_error", **half))
    if error > TRAINS:
        met = Undecided(f"with some of the blocks the mean training error is still {error:.1f} %, above {TRAINS:g}")
    return met, numbers, student_interval(apart, "the difference, points")


def claims(settings: Settings) -> list[Claim]:
    """Give the claims about lesions, about paths, and about training with some of the blocks."""
    return [
        *_about_lesions(settings),
        *_about_paths(settings["depth"] // 2 - 1),
        Claim(
            "some blocks at a time suffice", "“Only the short paths are needed during training.”",
            f"23 of 54 blocks, drawn anew in each of {2 * settings['steps']} steps, against all in "
            f"{settings['steps']}: test errors at most {POINT:.0f} point apart, in every seed; not decided while the "
            "mean training error with some blocks "
            f"is above {TRAINS:g} %", VEIT, _half, {"measures": ("lesions", "half")},
            paper_value="5.96 % against 6.10 %, CIFAR-10",
        ),
    ]  # fmt: skip


def _about_lesions(settings: Settings) -> list[Claim]:
    blocks, counts = settings["depth"] // 2 - 1, " and ".join(str(d // 2 - 1) for d in sorted(settings["depths"]))
    little = f"median rise of the test error at most {LITTLE:.0f} points, and of {MOST:.0%} of the blocks at most"
    whole, trained, shallow = {"measures": "lesions"}, TRAINED.format(blocks), settings["shallow"]
    return [
        Claim(
            "most blocks can go", "Paths “do not strongly depend on each other”: a residual network loses little when "
            "one of its blocks is deleted.", f"{blocks} blocks, each deleted alone: {little} {MUCH:.0f}, in every seed",
            VEIT, _most_can_go, whole,
            correction="Most, not all: the first block is needed by all others.",
        ),
        Claim(
            "a plain network needs each layer", "Without shortcuts the deletion of a single layer breaks a network.",
            f"plain network of {shallow} layers: median rise of the test error at least {BROKEN:.0f} points, in every "
            "seed", VEIT, _plain_needs_each, {"kind": ("plain", "residual"), "depth": shallow},
            paper_value="VGG: to chance, whichever layer",
        ),
        Claim(
            "at any depth", "A residual network is an implicit ensemble of shallow ones.",
            f"the same of {counts} blocks: {little} {MUCH:.0f}, in every seed", "common in tutorials",
            _at_any_depth, {"measures": "single", "kind": "residual"},
            correction="Redundancy comes with depth: a network of few blocks needs most of them, and an ensemble whose "
            "members all pass its first block is none.",
        ),
        Claim(
            "errors rise smoothly with deletions", "The more blocks are deleted, the larger the error: no cliff.",
            f"{trained}: rank correlation of their number and the mean error over {settings['draws']} draws at least "
            f"{ORDERED}, below {HALF_CHANCE:.0%} (half of chance) with two deleted, and {STEP}, in every seed", VEIT,
            _deletions, whole,
        ),
        Claim(
            "errors rise smoothly with disorder", "Blocks can be put in each other's place, and the error grows with "
            "the disorder.", f"{trained}: rank correlation of the share of pairs in the wrong order and the mean error "
            f"over {settings['draws']} draws at least {ORDERED}, below {HALF_CHANCE:.0%} with two swaps, and {STEP}, "
            "in every seed", VEIT, _swaps, whole,
        ),
    ]  # fmt: skip


def _about_paths(blocks: int) -> list[Claim]:
    whole, trained = {"measures": "lesions"}, TRAINED.format(blocks)
    return [
        Claim(
            "paths lose the gradient exponentially", "“Longer paths do not contribute any gradient”: what a path "
            "carries falls exponentially with its length.", f"{trained}: a line explains at least {STRAIGHT:.0%} of "
            "the variance of the logarithm of a single path's norm by its length, and falls, in every seed", VEIT,
            _exponential, whole,
        ),
        Claim(
            "the gradient takes short paths", "Most of the gradient of a network of 110 layers comes from paths that "
            "are “only 10-34 layers deep”: 5 to 17 blocks of two.", f"{trained}: number of paths times norm of one: at "
            f"least {MASS:.0%} below {SHORT} blocks, and mean at most {MEAN:.0f}, in every seed", VEIT, _short_paths,
            whole,
            paper_value="almost all from 5 to 17 blocks, 0.45 % of all paths",
        ),
        Claim(
            "norms of paths add", "What the paths of a length bring is their number times the norm of one.",
            f"{trained}: mean length by the norm of the sum over all paths of a length within {SAME:.0%} of that by "
            "number times norm, in every seed", VEIT, _norms_add, whole,
            correction="Gradients of different paths point in different directions, so that number times norm is an "
            "upper bound, which favours lengths of which there are many. What the paths of a length bring to the "
            "gradient g is exactly the share <g_k, g> / |g|^2, g_k being their sum: these shares add up to 1.",
        ),
        Claim(
            "squares of paths add", "Gradients that come by different paths have nothing in common, so that their "
            "squares add.", f"networks of {blocks} blocks, paths of {SQUARED[0]} to {SQUARED[-1]} of them: squared "
            f"norm of the sum over all paths of a length between 1/{TWICE:g} and {TWICE:g} times their number times "
            "the mean squared norm of one, before training and after it, in every seed", "this study's own correction, "
            "before a review", _squares_add, {"measures": ("lesions", "untrained")},
            correction="A statement about random weights, not about trained ones: see the ratios before and after "
            "training.",
        ),
        Claim(
            "effective depth has a closed form", "Before training, a block is passed with probability a^2/(1 + a^2), a "
            "being the gain of its branch.", f"untrained network of {blocks} blocks, squared norm of the sum over all "
            f"paths of a length: mean length within {LAW:.0%} of sum a^2/(1 + a^2) = "
            f"{_mean(predicted_shares(blocks)):.2f}, in every seed", "this library's theory, from De and Smith 2020, "
            "arXiv 2002.10444", _law, {"measures": "untrained"},
        ),
    ]  # fmt: skip
