"""Statistics for a handful of seeds: exact tests, effect sizes and intervals."""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, stdev
from types import ModuleType

from levada._errors import UsageError, import_extra, require_at_least
from levada.study.claim import Statistic

__all__ = [
    "bootstrap_interval",
    "cliffs_delta",
    "geometric_mean",
    "mann_whitney",
    "paired_permutation_test",
    "permutation_test",
    "sign_test",
    "spearman",
    "student_interval",
    "wilson_interval",
]


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> Statistic:
    """Mann and Whitney's U, two-sided, exact: are values of `first` larger or smaller than those of `second`?

    With ties, where U has no exact table, the p-value comes from all permutations of the ranks.

    Args:
        first: one value for each seed.
        second: one value for each seed.

    Returns:
        U of `first`, the number of pairs in which it is larger, and the exact p-value.

    Raises:
        UsageError: if a sample is empty or holds NaN.

    Example:
        >>> mann_whitney([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]).p == 2 / math.comb(10, 5)
        True

    Source: Mann and Whitney 1947.
    """
    stats = _scipy_stats()
    _require_numbers("mann_whitney", first, second)
    if len({*first, *second}) == len(first) + len(second):
        found = stats.mannwhitneyu(first, second, alternative="two-sided", method="exact")
        return Statistic("Mann-Whitney U, two-sided, exact", float(found.statistic), float(found.pvalue))
    ranks = stats.rankdata([*first, *second]).tolist()
    p = permutation_test(ranks[: len(first)], ranks[len(first) :]).p
    u = sum((a > b) + 0.5 * (a == b) for a in first for b in second)
    return Statistic("Mann-Whitney U, two-sided, exact by permutation", float(u), p)


def permutation_test(first: Sequence[float], second: Sequence[float]) -> Statistic:
    """Difference of means, two-sided, over all ways to split the values into two samples.

    Args:
        first: one value for each seed.
        second: one value for each seed.

    Returns:
        mean(first) - mean(second), and the share of splits whose difference is at least as large.

    Raises:
        UsageError: if a sample is empty or holds NaN, or there are more than a million splits.

    Example:
        >>> permutation_test([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]).p == 2 / math.comb(10, 5)
        True
    """
    stats = _scipy_stats()
    _require_numbers("permutation_test", first, second)
    splits = math.comb(len(first) + len(second), len(first))
    if splits > 1_000_000:
        raise UsageError(
            f"permutation_test goes through all splits, at most a million; {len(first)} and {len(second)} values "
            f"have {splits}. Use mann_whitney."
        )
    found = stats.permutation_test(
        (list(map(float, first)), list(map(float, second))),
        lambda a, b: a.mean() - b.mean(),
        vectorized=False,
        n_resamples=math.inf,
        alternative="two-sided",
    )
    return Statistic("difference of means, two-sided, all permutations", float(found.statistic), float(found.pvalue))


def paired_permutation_test(first: Sequence[float], second: Sequence[float]) -> Statistic:
    """Mean of the differences of pairs, two-sided, over all ways to give the differences signs.

    The test for two networks that a seed gives the same batches: by chance either could have been the first of its
    pair. With n pairs p is at least 2 / 2^n, so that five cannot reach .05.

    Args:
        first: one value for each seed.
        second: one value for each seed, in the same order.

    Returns:
        The mean of first - second, and the share of sign patterns whose mean is at least as far from 0.

    Raises:
        UsageError: if a sample is empty or holds NaN, the lengths differ, or there are more than 20 pairs.

    Example:
        >>> paired_permutation_test([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]).p == 2 / 2**5
        True

    Source: Fisher 1935.
    """
    _require_numbers("paired_permutation_test", first, second)
    if len(first) != len(second):
        raise UsageError(f"paired_permutation_test needs pairs, got {len(first)} and {len(second)} values.")
    if len(first) > 20:
        raise UsageError(f"paired_permutation_test goes through all signs of at most 20 pairs, got {len(first)}.")
    differences = [float(a - b) for a, b in zip(first, second, strict=True)]
    least = abs(math.fsum(differences)) - 1e-12 * math.fsum(map(abs, differences))  # ties in spite of rounding
    signs = itertools.product((1, -1), repeat=len(differences))
    count = sum(abs(math.fsum(map(operator.mul, pattern, differences))) >= least for pattern in signs)
    name = f"sign-flip test of paired differences, two-sided, exact, {len(differences)} pairs"
    return Statistic(name, fmean(differences), count / 2 ** len(differences))


def sign_test(successes: int, trials: int) -> Statistic:
    """Exact binomial test of "as often as not", two-sided: 5 of 5 gives p = 1/16.

    Args:
        successes: in how many seeds it held.
        trials: number of seeds.

    Returns:
        The number of successes and the exact p-value.

    Raises:
        UsageError: if `successes` is not between 0 and `trials`.

    Example:
        >>> sign_test(5, 5).p
        0.0625
    """
    _require_share("sign_test", successes, trials)
    tail = min(successes, trials - successes)
    p = min(1.0, 2 * sum(math.comb(trials, k) for k in range(tail + 1)) / 2**trials)
    return Statistic(f"sign test, two-sided, exact, {successes} of {trials}", float(successes), p)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Statistic:
    """Wilson's score interval for a share.

    Args:
        successes: how often.
        trials: of how many.
        confidence: its coverage.

    Returns:
        The share and its interval.

    Raises:
        UsageError: if `successes` is not between 0 and `trials`, or `confidence` not between 0 and 1.

    Example:
        >>> interval = wilson_interval(5, 5)
        >>> round(interval.low, 4), round(interval.high, 12)
        (0.5655, 1.0)

    Source: Wilson 1927.
    """
    _require_share("wilson_interval", successes, trials)
    share, z = successes / trials, NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    name = f"share, Wilson interval, {confidence:.0%}"
    return Statistic(name, share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    confidence: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Statistic:
    """Percentile bootstrap interval of a statistic of one sample.

    With few values it is too narrow (5 values give 95 % intervals that cover about 83 %): see `student_interval`.

    Args:
        values: one value for each seed.
        statistic: a function of a sample; the mean if left out.
        confidence: its nominal coverage.
        num_samples: number of resamples.
        seed: seed of the resampling.

    Returns:
        The statistic of `values` and its interval.

    Raises:
        UsageError: if `values` is empty or holds NaN, or `confidence` is not between 0 and 1.

    Example:
        >>> found = bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> 1.0 < found.low < found.value < found.high < 5.0
        True

    Source: Efron 1979.
    """
    _require_numbers("bootstrap_interval", values)
    generator = random.Random(seed)
    draws = sorted(statistic(generator.choices(values, k=len(values))) for _ in range(num_samples))
    tail = (1 - _checked(confidence)) / 2
    low, high = draws[math.floor(tail * num_samples)], draws[math.ceil((1 - tail) * num_samples) - 1]
    return Statistic(f"bootstrap interval, {confidence:.0%}", statistic(values), low=low, high=high)


def student_interval(values: Sequence[float], of: str = "the mean", confidence: float = 0.95) -> Statistic:
    """Student's interval of a mean: `mean +- t(n - 1) s / sqrt(n)`, exact for normal values however few they are.

    Args:
        values: one value for each seed, at least two.
        of: what the mean is of, in words.
        confidence: its coverage.

    Returns:
        The mean and its interval.

    Raises:
        UsageError: if there are fewer than two values or one is NaN, or `confidence` is not between 0 and 1.

    Example:
        >>> found = student_interval([1.0, 2.0, 3.0, 4.0, 5.0])
        >>> round(found.low, 3), round(found.high, 3)
        (1.037, 4.963)

    Source: Student 1908.
    """
    _require_numbers("student_interval", values)
    require_at_least("student_interval", "the number of values", len(values), 2)
    quantile = _scipy_stats().t.ppf((1 + _checked(confidence)) / 2, len(values) - 1)
    mean, half = fmean(values), float(quantile) * stdev(values) / math.sqrt(len(values))
    return Statistic(f"Student's {confidence:.0%} interval of {of}", mean, low=mean - half, high=mean + half)


def cliffs_delta(first: Sequence[float], second: Sequence[float]) -> float:
    """Effect size: the share of pairs in which `first` is larger, less that in which it is smaller.

    Args:
        first: one value for each seed.
        second: one value for each seed.

    Returns:
        A number between -1 and 1, the ends being complete separation.

    Raises:
        UsageError: if a sample is empty or holds NaN.

    Example:
        >>> cliffs_delta([6, 7, 8], [1, 2, 7])
        0.6666666666666666

    Source: Cliff 1993.
    """
    _require_numbers("cliffs_delta", first, second)
    return sum((a > b) - (a < b) for a in first for b in second) / (len(first) * len(second))


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean, by logarithms.

    Args:
        values: positive numbers.

    Returns:
        The mean.

    Raises:
        UsageError: if `values` is empty, holds NaN, or one is not positive.

    Example:
        >>> round(geometric_mean([1e-300, 1e-100]) / 1e-200, 9)
        1.0
    """
    _require_numbers("geometric_mean", values)
    if min(values) <= 0:
        raise UsageError(f"geometric_mean: values must be positive, got {min(values)}.")
    return math.exp(fmean(map(math.log, values)))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        first: numbers, not all the same.
        second: as many, not all the same.

    Raises:
        UsageError: if the lengths differ, or a sample is empty, holds NaN or has nothing to rank.

    Example:
        >>> spearman([1, 2, 3], [10, 30, 20])
        0.5

    Source: Spearman 1904.
    """
    _require_numbers("spearman", first, second)
    if len(first) != len(second):
        raise UsageError(f"spearman needs pairs, got {len(first)} and {len(second)} values.")
    if len(set(first)) == 1 or len(set(second)) == 1:
        raise UsageError("spearman needs samples with at least two different values.")
    # Twice the distance of a rank from the mean rank is a whole number: sums are exact, with ties as well.
    ranks: list[list[float]] = _scipy_stats().rankdata([first, second], axis=1).tolist()
    a, b = ([round(2 * rank) - len(first) - 1 for rank in own] for own in ranks)
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def _scipy_stats() -> ModuleType:
    return import_extra("scipy.stats", "study", "An exact test")


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must be between 0 and 1, got {confidence}.")
    return confidence


def _require_share(owner: str, successes: int, trials: int) -> None:
    require_at_least(owner, "trials", trials, 1)
    if not 0 <= successes <= trials:
        raise UsageError(f"{owner}: successes must be between 0 and {trials}, got {successes}.")


def _require_numbers(owner: str, *samples: Sequence[float]) -> None:
    for sample in samples:
        if not len(sample) or any(math.isnan(value) for value in sample):
            raise UsageError(f"{owner} needs samples that are not empty and hold no NaN, got {list(sample)}.")
