"""The suite of memory horizons: what its networks are, and how it is summed up."""

from __future__ import annotations

import pytest
import torch
from benchmarks.diagnosis.memory import CONFIGURATIONS, Recall, learn, recall, summary

from levada.probe import gate_statistics, recurrences


def row(name, horizon, longest):
    return {
        "configuration": name,
        "horizon": {"value": horizon},
        "horizon_of_gates": horizon,
        "longest": longest,
    }


def test_a_perfect_prediction_has_rank_correlation_one():
    rows = [row(str(lag), float(lag), lag) for lag in (5, 10, 20, 40, 80)] + [row("all", 1e9, 160), row("none", 2.0, 0)]
    told = summary(rows)
    assert told["spearman"] == told["spearman_of_configurations"] == 1.0
    assert told["ratio_median"] == 1.0
    assert (told["within_factor_2"], told["with_ratio"]) == (5, 5)
    assert (told["all_or_nothing"], told["all_or_nothing_right"]) == (2, 2)


def test_a_prediction_that_is_the_wrong_way_round_is_seen():
    told = summary([row(str(lag), 400.0 / lag, lag) for lag in (5, 10, 20, 40, 80)] + [row("all", 3.0, 160)])
    assert told["spearman"] == -1.0
    assert told["within_factor_2"] == 1
    assert told["all_or_nothing_right"] == 0


@pytest.mark.parametrize(("name", "mean"), [("lstm bias 3", 0.95), ("gru bias -2", 0.12), ("lstm default", 0.5)])
def test_gates_are_where_the_configuration_puts_them(name, mean):
    model = CONFIGURATIONS[name].build(0)
    x, _ = recall(20, 8, torch.Generator().manual_seed(0))
    found, _ = recurrences(model, lambda: model(x))
    assert gate_statistics(found[0]).mean == pytest.approx(mean, abs=0.04)


def test_a_short_lag_is_learned_and_not_without_its_symbol(monkeypatch):
    assert learn(CONFIGURATIONS["gru default"].build(0), 5, 0)[0] > 0.9

    def without(lag, rows, generator):
        x, targets = recall(lag, rows, generator)
        x[:, 0] = 0.0
        return x, targets

    monkeypatch.setattr("benchmarks.diagnosis.memory.recall", without)
    monkeypatch.setattr("benchmarks.diagnosis.memory.STEPS", 75)
    assert learn(CONFIGURATIONS["gru default"].build(0), 5, 0)[0] < 0.5


def test_networks_of_a_seed_are_the_same():
    one, other = (CONFIGURATIONS["rnn default"].build(1) for _ in range(2))
    assert isinstance(one, Recall)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
