from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.study.readers import ConvolutionReader, RecurrentReader, Stage, matched_width, recall_accuracy, train_recall
from levada.study.recall import (
    IGNORED,
    RecallBatch,
    induction,
    key_value_recall,
    multi_query_recall,
    recall_chance,
    recall_vocabulary,
    slot_chance,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def questions(batch):
    """(tokens before and at the question, its place, the answer, the answer's place), as plain numbers."""
    for row, targets, places in zip(batch.tokens.tolist(), batch.targets.tolist(), batch.places.tolist(), strict=True):
        for at, (target, place) in enumerate(zip(targets, places, strict=True)):
            assert (target == IGNORED) == (place < 0)
            if place >= 0:
                yield row[: at + 1], at, target, place


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_multi_query_recall_asks_every_key_once_and_the_pairs_answer(pairs):
    batch = multi_query_recall(50, pairs, keys=9, values=8, length=4 * pairs + 5, generator=seeded())
    asked = Counter()
    for seen, at, target, place in questions(batch):
        key = seen[-1]
        read = dict(zip(seen[: 2 * pairs : 2], seen[1 : 2 * pairs : 2], strict=True))
        assert len(read) == len(set(read.values())) == pairs
        assert all(k % 2 == 1 and k <= 17 for k in read)
        assert all(v % 2 == 0 and 0 < v <= 16 for v in read.values())
        assert target == read[key] == seen[place]
        assert seen[place - 1] == key
        assert seen.count(key) == 2
        assert (at - 2 * pairs) % 2 == 0
        asked[key] += 1
    assert sum(asked.values()) == 50 * pairs
    assert int(batch.tokens.max()) < recall_vocabulary(9, 8) == 18
    assert ((batch.tokens == 0).sum(-1) == batch.tokens.shape[1] - 3 * pairs).all()


def test_slots_are_drawn_one_by_one_without_replacement():
    # Every order of 3 of 4 slots, with its exact probability, against the order that is drawn.
    weights = [s ** (0.01 - 1) for s in range(1, 5)]
    exact = {}
    for order in itertools.permutations(range(4), 3):
        share, left = 1.0, sum(weights)
        for slot in order:
            share, left = share * weights[slot] / left, left - weights[slot]
        exact[order] = share
    number = 40_000
    batch = multi_query_recall(number, 3, keys=3, values=3, length=14, generator=seeded())
    at = (batch.places[:, 6:, None] == torch.tensor([1, 3, 5])).float().argmax(1) // 2
    drawn = Counter(map(tuple, at.tolist()))
    chi = sum((drawn[order] - number * share) ** 2 / (number * share) for order, share in exact.items())
    assert chi < 49.7  # the 99.9 % point of chi-squared with 23 degrees of freedom


@pytest.mark.parametrize(("pairs", "length", "power"), [(2, None, 0.01), (3, None, 0.01), (2, 11, 0.5), (3, 16, 1.0)])
def test_slot_chance_is_that_of_the_best_guess_by_the_slot(pairs, length, power):
    slots = (4 * pairs if length is None else length) // 2 - pairs
    weights = [s ** (power - 1) for s in range(1, slots + 1)]
    by_slot = Counter()
    for order in itertools.permutations(range(slots), pairs):
        share, left = 1.0, sum(weights)
        for slot in order:
            share, left = share * weights[slot] / left, left - weights[slot]
        for pair, slot in enumerate(order):
            by_slot[slot, pair] += share
    best = sum(max(by_slot[slot, pair] for pair in range(pairs)) for slot in range(slots)) / pairs
    assert slot_chance(pairs, length=length, power=power) == pytest.approx(best, abs=2e-6)


def test_key_value_recall_asks_every_pair_equally_often():
    batch = key_value_recall(3000, 3, keys=3, values=4, generator=seeded())
    asked = Counter()
    for seen, at, target, place in questions(batch):
        assert at == 6
        assert seen[place] == target
        assert seen[place - 1] == seen[-1]
        asked[place] += 1
    assert set(asked) == {1, 3, 5}
    assert all(abs(count - 1000) < 130 for count in asked.values())  # five standard deviations
    orders = Counter(tuple(row[:6]) for row in batch.tokens.tolist())
    assert len(orders) == 6 * 24  # every order of the keys with every choice of the values


def test_induction_asks_what_followed_in_random_order():
    batch = induction(200, 5, vocabulary=7, questions=4, generator=seeded())
    orders = set()
    for seen, _, target, place in questions(batch):
        read = seen[:5]
        assert len(set(read)) == 5
        assert target == read[read.index(seen[-1]) + 1] == seen[place]
    for row in batch.tokens.tolist():
        orders.add(tuple(row[:5].index(token) for token in row[5:]))
        assert len(set(row[5:])) == 4
    assert len(orders) == 24


@pytest.mark.parametrize("remembered", [0, 1, 2, 3, 4])
def test_recall_chance_is_that_of_the_best_guess_among_the_rest(remembered):
    # Who knows some pairs answers any of the other values: over all that may be, it is right as often as said.
    right = total = 0
    for values in itertools.permutations(range(4)):
        for asked in range(4):
            total += 1
            rest = sorted(values[remembered:])
            right += (values[asked] if asked < remembered else rest[0]) == values[asked]
    assert recall_chance(4, remembered) == pytest.approx(right / total)


def test_chance_of_induction_is_that_of_who_knows_no_order():
    # The set of tokens and the one that is asked for: the best guess over every order.
    found = Counter()
    for read in itertools.permutations(range(4)):
        for asked in range(3):
            found[read[asked], read[asked + 1]] += 1
    best = sum(max(found[token, other] for other in range(4)) for token in range(4)) / sum(found.values())
    assert recall_chance(4 - 1) == pytest.approx(best)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda g: multi_query_recall(1, 9, keys=8, values=9, generator=g), r"keys must be at least 9, got 8\. Each"),
        (lambda g: multi_query_recall(1, 9, keys=9, values=8, generator=g), r"values must be at least 9, got 8"),
        (lambda g: multi_query_recall(1, 4, keys=4, values=4, length=15, generator=g), r"length must be at least 16"),
        (lambda g: key_value_recall(1, 3, keys=2, values=3, generator=g), r"key_value_recall: keys must be at least 3"),
        (lambda g: key_value_recall(1, 0, keys=2, values=3, generator=g), r"num_pairs must be at least 1, got 0"),
        (lambda g: induction(1, 1, vocabulary=3, generator=g), r"num_tokens must be at least 2, got 1\. One token"),
        (lambda g: induction(1, 4, vocabulary=3, generator=g), r"vocabulary must be at least 4, got 3"),
        (lambda g: induction(1, 4, vocabulary=4, questions=4, generator=g), r"at most num_tokens - 1 = 3.*got 4"),
        (lambda g: recall_chance(4, 5), r"remembered must be at most num_pairs = 4, got 5"),
        (lambda g: slot_chance(4, length=15), r"length must be at least 16, got 15"),
        (lambda g: Stage(lambda _: None, 0), r"Stage: steps must be at least 1, got 0"),
        (lambda g: RecurrentReader(4, 4, 4, "RNN"), r"kind must be GRU or LSTM, got 'RNN'"),
        (lambda g: ConvolutionReader(4, 4, 0), r"depth must be at least 1, got 0"),
        (lambda g: matched_width(lambda width: nn.Linear(width, 100), 90), r"narrowest network has 200 parameters"),
    ],
)
def test_what_cannot_be_is_told(ask, message):
    with pytest.raises(UsageError, match=message):
        ask(seeded())


def test_a_network_learns_what_it_is_asked_and_is_measured_on_it():
    def draw(generator):
        return key_value_recall(32, 1, keys=1, values=4, generator=generator)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RecurrentReader(recall_vocabulary(1, 4), 8, 8, "LSTM")
    assert model.state == 16
    ended = []
    first, second = train_recall(model, [Stage(draw, 60), Stage(draw, 30)], 0.02, 0, ended.append)
    assert ended == [0, 1]
    assert recall_accuracy(model, draw(seeded(1))) == 1.0
    assert first["accuracy"][0] < 0.6 < 0.99 < second["accuracy"][-1]
    assert (first["steps"][-1], second["steps"][-1], len(first["steps"])) == (60, 30, 30)
    batch = draw(seeded(2))
    wrong = RecallBatch(batch.tokens, torch.where(batch.targets == IGNORED, IGNORED, 1), batch.places)
    assert recall_accuracy(model, wrong) == 0.0


def test_a_fixed_state_is_all_that_reaches_a_later_place():
    model = RecurrentReader(9, 4, 3, "GRU")
    tokens = torch.arange(9)[None]
    _, state = model.recurrence(model.token(tokens[:, :5]).transpose(0, 1))
    rest, _ = model.recurrence(model.token(tokens[:, 5:]).transpose(0, 1), state)
    torch.testing.assert_close(model.head(rest).transpose(0, 1), model(tokens)[:, 5:])
    assert state.numel() == model.state == 3
