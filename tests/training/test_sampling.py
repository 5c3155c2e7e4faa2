"""The order of the examples: each once an epoch, a function of seed and place alone, the same for any processes."""

from __future__ import annotations

import pytest
import torch

from levada._errors import UsageError
from levada.training.sampling import Order, mix, share

PINNED = [2, 0, 4, 1, 3, 6, 5, 7, 8, 9, 5, 7, 6, 0, 8, 3, 4, 1, 2, 9]
MIXED = [8147104208329303767, 6804074658870690613, 8085905411993364802]


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097])
def test_every_epoch_has_each_example_once(num):
    order = Order(num, seed=3)
    for epoch in range(3):
        assert sorted(order.examples(epoch * num, (epoch + 1) * num).tolist()) == list(range(num))


def test_any_part_of_the_order_is_the_same_part_of_it():
    order = Order(10, seed=1)
    whole = order.examples(0, 35)
    assert [order.examples(place, place + 1).item() for place in range(35)] == whole.tolist()
    assert torch.equal(torch.cat([order.examples(0, 7), order.examples(7, 35)]), whole)


def test_the_order_is_known():
    # Pinned: a run that is continued by another version must see the same examples.
    assert Order(10, seed=0).examples(0, 20).tolist() == PINNED
    assert [mix(0), mix(1, 2), mix(2, 1)] == MIXED


def test_epochs_and_seeds_have_orders_of_their_own():
    first = Order(100, seed=0)
    assert not torch.equal(first.examples(0, 100), first.examples(100, 200))
    assert not torch.equal(first.examples(0, 100), Order(100, seed=1).examples(0, 100))


@pytest.mark.parametrize("num", [5, 37])
def test_every_place_has_every_example_alike(num):
    epochs = 300
    counts = torch.zeros(num, num)
    order = Order(num, seed=7)
    for epoch in range(epochs):
        counts[torch.arange(num), order.examples(epoch * num, (epoch + 1) * num)] += 1
    expected = epochs / num
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    freedom = (num - 1) ** 2
    assert abs(chi_squared - freedom) < 4 * (2 * freedom) ** 0.5


def test_neighbours_are_torn_apart():
    places = Order(10_000, seed=0).examples(0, 10_000).double()
    pairs = torch.stack([places[:-1], places[1:]])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.04


def test_a_large_set_costs_no_more():
    huge = 2**40 + 1
    found = Order(huge, seed=0).examples(10**12, 10**12 + 1000)
    assert len(set(found.tolist())) == 1000
    assert 0 <= found.min() < found.max() < huge


def test_processes_share_a_batch():
    assert [share(12, 2, rank, 3) for rank in range(3)] == [(0, 4), (4, 8), (8, 12)]
    with pytest.raises(UsageError, match=r"times the number of processes, got 12, 2 and 4\. Try 2 times 8"):
        share(12, 2, 0, 4)
