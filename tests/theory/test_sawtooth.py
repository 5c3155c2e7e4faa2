"""The sawtooth, its network, and bounds that are tight where they can be."""

from __future__ import annotations

import itertools

import pytest
import torch

from levada._errors import UsageError
from levada.theory import crossing_bound, most_pieces, sawtooth, sawtooth_layers, seldom_fitted


def outputs(layers, x):
    state = x.unsqueeze(1)
    for index, (weight, bias) in enumerate(layers):
        state = (state.relu() if index else state) @ weight.T + bias
    return state.flatten()


@pytest.mark.parametrize("folds", [1, 2, 5, 12])
def test_the_network_is_the_sawtooth_bit_by_bit(folds):
    drawn = torch.randint(2**40, (500,), generator=torch.Generator().manual_seed(0)).double() / 2**40
    assert torch.equal(outputs(sawtooth_layers(folds), drawn), sawtooth(drawn, folds))
    ends = torch.arange(2**folds + 1).double() / 2**folds
    assert torch.equal(sawtooth(ends, folds), torch.arange(2**folds + 1).double() % 2)
    assert sum(weight.numel() + bias.numel() for weight, bias in sawtooth_layers(folds)) == 6 * folds + 1


def test_no_folds_are_the_identity():
    x = torch.linspace(0, 1, 9)
    assert torch.equal(sawtooth(x, 0), x)


@pytest.mark.parametrize(("pieces", "points"), [(1, 5), (2, 5), (2, 9), (3, 8), (4, 10), (1, 7)])
def test_the_crossing_bound_is_the_best_of_all_answers_with_so_many_runs(pieces, points):
    # Every answer that changes at most `pieces` times, on labels 0, 1, 0, 1, ...
    labels = [i % 2 for i in range(points)]
    fewest = min(
        sum(a != b for a, b in zip(answer, labels, strict=True))
        for answer in itertools.product((0, 1), repeat=points)
        if sum(a != b for a, b in itertools.pairwise(answer)) <= pieces
    )
    bound = crossing_bound(pieces, points) * points
    assert bound <= fewest < bound + 1
    if (points - pieces - 1) % 2 == 0:
        assert fewest == pytest.approx(bound), "runs of odd lengths reach it"


def test_with_pieces_enough_nothing_is_bounded():
    assert crossing_bound(64, 65) == 0
    assert crossing_bound(1000, 65) == 0
    assert crossing_bound(63, 65) == pytest.approx(0.5 / 65)


def test_most_pieces():
    assert most_pieces([7]) == 8
    assert most_pieces([2, 2, 2]) == 27
    assert most_pieces([]) == 1


def test_few_labellings_are_fitted_by_few_weights():
    assert seldom_fitted(31, 32, 1000) == 2.0**-8
    assert seldom_fitted(32, 32, 1000) == 1
    assert seldom_fitted(1, 1, 5000) == 0, "below the least number"


@pytest.mark.parametrize("call", [
    lambda: sawtooth(torch.zeros(1), -1), lambda: sawtooth_layers(0), lambda: most_pieces([3, 0]),
    lambda: crossing_bound(0, 5), lambda: crossing_bound(3, 0), lambda: seldom_fitted(0, 32, 5),
])  # fmt: skip
def test_counts_are_checked(call):
    with pytest.raises(UsageError, match="at least"):
        call()
