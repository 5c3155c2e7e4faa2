from __future__ import annotations

import itertools
import math
import random
from statistics import fmean

import pytest

from levada._errors import UsageError
from levada.study.statistics import (
    bootstrap_interval,
    cliffs_delta,
    geometric_mean,
    mann_whitney,
    paired_permutation_test,
    permutation_test,
    sign_test,
    spearman,
    student_interval,
    wilson_interval,
)


def by_hand(first, second, statistic):
    """Two-sided p-value of a statistic that is 0 under the null, over all splits."""
    pooled = [*first, *second]
    found = abs(statistic(first, second))
    count = total = 0
    for chosen in itertools.combinations(range(len(pooled)), len(first)):
        a = [pooled[i] for i in chosen]
        b = [pooled[i] for i in range(len(pooled)) if i not in chosen]
        count += abs(statistic(a, b)) >= found - 1e-12
        total += 1
    return count / total


def excess(a, b):
    return sum((x > y) - (x < y) for x in a for y in b)


SAMPLES = [
    ([6.0, 7.0, 8.0, 9.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0]),
    ([1.0, 2.5, 3.0, 9.0, 4.0], [2.0, 3.5, 0.5, 6.0, 7.0]),
    ([1.0, 2.0, 2.0, 3.0], [2.0, 3.0, 4.0, 4.0]),
]


@pytest.mark.parametrize(("first", "second"), SAMPLES)
def test_exact_p_values_equal_an_enumeration(first, second):
    assert mann_whitney(first, second).p == pytest.approx(by_hand(first, second, excess), rel=1e-9)
    difference = permutation_test(first, second)
    assert difference.p == pytest.approx(by_hand(first, second, lambda a, b: fmean(a) - fmean(b)), rel=1e-9)
    assert difference.value == pytest.approx(fmean(first) - fmean(second))


@pytest.mark.parametrize(("first", "second"), [*SAMPLES[:2], ([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 4.0, 4.0])])
def test_the_paired_test_equals_an_enumeration_of_signs(first, second):
    differences = [a - b for a, b in zip(first, second, strict=True)]
    means = [
        abs(fmean(d if keep else -d for d, keep in zip(differences, kept, strict=True)))
        for kept in itertools.product((True, False), repeat=len(differences))
    ]
    found = paired_permutation_test(first, second)
    assert found.value == pytest.approx(fmean(differences))
    assert found.p == sum(mean >= abs(found.value) - 1e-12 for mean in means) / 2 ** len(differences)


def test_the_paired_test_uses_pairs():
    far = [1.0, 10.0, 100.0, 1000.0, 10_000.0]
    near = [value - 0.1 * (i + 1) for i, value in enumerate(far)]
    assert paired_permutation_test(far, near).p == 2 / 2**5
    assert mann_whitney(far, near).p > 0.5
    assert paired_permutation_test(far, far).p == 1
    assert paired_permutation_test([0.3, 0.1], [0.0, 0.0]).p == 0.5
    assert paired_permutation_test([0.1, 0.2, 0.3], [0.2, 0.4, 0.0]).p == 1, "a mean of 0 in spite of rounding"
    for pairs, message in ((([1.0], [1.0, 2.0]), "needs pairs"), (([0.0] * 21,) * 2, "at most 20 pairs")):
        with pytest.raises(UsageError, match=message):
            paired_permutation_test(*pairs)


def test_complete_separation_of_five_and_five():
    found = mann_whitney(*SAMPLES[0])
    assert (found.value, found.p) == (25.0, pytest.approx(2 / 252))
    assert cliffs_delta(*SAMPLES[0]) == 1.0


def test_sign_test_and_wilson_interval():
    assert sign_test(3, 5).p == 1.0
    assert sign_test(0, 6).p == pytest.approx(2 / 64)
    found = wilson_interval(8, 10)
    assert (found.low, found.high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    assert wilson_interval(0, 4).low == 0.0


def test_bootstrap_interval_of_many_values_is_the_normal_one():
    values = [math.sin(12.9898 * i) for i in range(400)]  # mean near 0, variance near 1/2
    found = bootstrap_interval(values, num_samples=2000)
    half = 1.96 * math.sqrt(fmean((v - found.value) ** 2 for v in values) / 400)
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)
    assert found == bootstrap_interval(values, num_samples=2000), "the same seed, the same interval"


def test_students_interval_covers_what_it_says():
    draw = random.Random(0)
    covers = [
        (found := student_interval([draw.gauss(0, 1) for _ in range(5)])).low < 0 < found.high for _ in range(1000)
    ]
    assert 0.93 < fmean(covers) < 0.97


def test_geometric_mean():
    assert geometric_mean([1e-200, 1e-100, 1e300]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: mann_whitney([], [1.0]),
        lambda: mann_whitney([math.nan], [1.0]),
        lambda: permutation_test([0.0] * 30, [1.0] * 30),
        lambda: sign_test(6, 5),
        lambda: wilson_interval(1, 0),
        lambda: bootstrap_interval([]),
        lambda: bootstrap_interval([1.0], confidence=95),
        lambda: geometric_mean([1.0, 0.0]),
        lambda: cliffs_delta([1.0], []),
    ],
)
def test_bad_input(call):
    with pytest.raises(UsageError):
        call()


def test_spearman_is_exact_without_ties_and_shares_ranks_with_them():
    assert spearman([1, 2, 3, 4], [1, 5, 7, 90]) == 1
    assert spearman([1, 2, 3, 4], [4, 3, 2, -8]) == -1
    first, second = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6], [2.0, 7.0, 1.0, 8.0, 2.8, 1.8]
    apart = sum((sorted(first).index(a) - sorted(second).index(b)) ** 2 for a, b in zip(first, second, strict=True))
    assert spearman(first, second) == pytest.approx(1 - 6 * apart / (6 * 35), rel=1e-15)
    # Ranks 1.5, 1.5, 3 and 1, 2, 3 about their mean of 2: 3/2 over the root of 3/2 times 2.
    assert spearman([0, 0, 5], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(3), rel=1e-15)


@pytest.mark.parametrize(
    "samples", [([1, 2], [1]), ([1, 1], [1, 2]), ([1, 2], [3, 3]), ([], []), ([1, math.nan], [1, 2])]
)
def test_spearman_refuses_what_cannot_be_ranked(samples):
    with pytest.raises(UsageError, match="spearman needs"):
        spearman(*samples)
