from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from levada._errors import UsageError
from levada.report import render_report
from levada.studies import hyper_connections
from levada.studies.hyper_connections import CONNECTIONS, STUDY
from levada.study import Results, claims, execute, failures, figures, results
from levada.study.products import (
    constrained,
    mean_square_gain,
    near_identity_logits,
    perturbed_identities,
    product_over_depth,
    sum_statistics,
)


def test_products_are_in_the_order_of_the_layers():
    first, second = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    assert torch.equal(product_over_depth(torch.stack([first, second])), second @ first)
    assert torch.equal(perturbed_identities(0.0, 3, 4, 2, 0), torch.eye(4).double().expand(2, 3, 4, 4))


def test_the_product_test_is_its_closed_form():
    # E|row of P|^2 obeys E[P_l 1 1' P_l'] = E[P 1 1' P'] + eps^2 |P 1|^2 I.
    for epsilon, depth in ((0.05, 60), (0.1, 15)):
        found = sum_statistics(product_over_depth(perturbed_identities(epsilon, depth, 4, 4000, 0)))
        assert found["mean_square"] == pytest.approx(mean_square_gain(epsilon, depth, 4), rel=0.04)
    one = sum_statistics(perturbed_identities(0.5, 1, 4, 20_000, 1)[:, 0])
    assert one["mean_square"] == pytest.approx(2.0, rel=0.02)


def test_sums_say_what_they_say():
    product = torch.tensor([[[0.5, 0.5], [0.0, 1.0]], [[0.25, 0.75], [0.25, 0.75]]], dtype=torch.float64)
    found = sum_statistics(product)
    assert found["row_deviation"] == 0
    assert found["mean_square"] == 1
    assert found["log_column"] == pytest.approx(math.log(2))
    assert found["log_column_median"] == pytest.approx(math.log(2))
    assert found["gain"] == 1.5
    assert found["largest_column"] == 1.5
    assert found["smallest_column"] == 0.5
    signed = sum_statistics(torch.tensor([[[2.0, -1.0], [-1.0, 2.0]]]))
    assert (signed["gain"], signed["absolute_gain"]) == (1, 3)
    assert sum_statistics(torch.tensor([[[1.0, 0.0], [0.0, -1.0]]]))["log_column"] == math.inf


def test_rows_are_exact_and_columns_drift_by_iterations():
    logits = near_identity_logits(60, 4, 40, 0)
    found = [sum_statistics(constrained(logits, iterations)) for iterations in (5, 20, 100)]
    assert all(one["row_deviation"] < 1e-13 for one in found)
    logs = [one["log_column"] for one in found]
    assert logs == sorted(logs, reverse=True)
    assert logs[1] > 0.2
    far = torch.randn(40, 60, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sum_statistics(constrained(far, 200))["log_column"] < 1e-9, "their limit is doubly stochastic"
    assert torch.equal(near_identity_logits(60, 4, 3, 7), near_identity_logits(60, 4, 3, 7))
    with pytest.raises(UsageError, match="iterations must be at least 1"):
        constrained(logits, 0)


def sound(config, seed):
    """Values at which every claim on mHC, and none on HC's failings, is near its bound but for what a test changes."""
    if config["measures"] == "product":
        free = {"absolute_gain": 100.0, "gain": 90.0, "mean_square": 1.0}
        return {"free": free, "constrained": {"row_deviation": 1e-14}}
    if config["measures"] == "drift":
        return {"row_deviation": 1e-15, "log_column": 4 / config["iterations"] + 0.21, "largest_column": 1.5,
                "smallest_column": 0.5, "log_column_median": 0.1}  # fmt: skip
    if config["measures"] == "cost":
        one = dict.fromkeys(CONNECTIONS, 64)
        return {"time": dict.fromkeys(CONNECTIONS, 1.09), "state": one, "parameters": one, "of_connections": one}
    gain = 6.0 if config["connection"] == "HC" else 1.5
    signals = dict.fromkeys(hyper_connections._COMPOSITE, gain)
    names = ("mixing_forward_gain", "mixing_backward_gain")
    loss = 2.0 + 0.001 * seed
    return {"train_loss": loss, "test_loss": loss + 0.1, "finite": True, "largest_rise": 0.49, "lr": 0.003,
            "gains": [{"step": 0, **signals}], "mixing": {name: [gain] for name in (*names, *signals)},
            "gradient_after": [1.0], "curves": {"steps": [1], "loss": [loss], "gradient_norm": [1.0]}}  # fmt: skip


def outcome(claim, change=lambda config, seed, values: values):
    cells = STUDY.configurations(STUDY.resolve("small"), range(5))
    values = {
        cell.key(seed): change(cell.config, seed, sound(cell.config, seed)) for cell in cells for seed in cell.seeds
    }
    (tested,) = [c for c in STUDY.claims({}) if c.name == claim]
    return tested.test(Results(cells, values))


def in_seed_three(name, key, value, **fields):
    """Change one value of seed 3 where the configuration has these fields."""

    def change(config, seed, values):
        if seed == 3 and all(config.get(k) == v for k, v in fields.items()):
            if name == "gains":
                return {**values, "gains": [*values["gains"], {"step": 9, **values["gains"][0], key: value}]}
            return {**values, name: {**values[name], key: value}} if key else {**values, name: value}
        return values

    return change


@pytest.mark.parametrize(("epsilon", "least"), [(0.05, 2.0), (0.1, 5.0), (0.2, 20.0)])
@pytest.mark.parametrize(("factor", "status"), [(1.0, "held"), (0.999, "not held")])
def test_products_must_grow_in_every_seed(epsilon, least, factor, status):
    def change(config, seed, values):
        if config.get("epsilon") == epsilon and seed == 3:
            values["free"]["absolute_gain"] = least * factor
        return values

    assert outcome("unconstrained products explode", change).status == status


@pytest.mark.parametrize(("deviation", "status"), [(1e-12, "held"), (1.1e-12, "not held")])
@pytest.mark.parametrize("measures", ["drift", "product"])
def test_rows_must_be_exact_in_every_product(measures, deviation, status):
    def change(config, seed, values):
        if config["measures"] == measures == "drift" and config["iterations"] == 50 and seed == 2:
            return {**values, "row_deviation": deviation}
        if config["measures"] == measures == "product" and config["epsilon"] == 0.1 and seed == 2:
            return {**values, "constrained": {"row_deviation": deviation}}
        return values

    assert outcome("Sinkhorn keeps the rows", change).status == status


@pytest.mark.parametrize(("iterations", "value", "status"), [
    (20, 0.4, "held"), (20, 0.399, "not held"), (50, 0.411, "not held"), (100, 0.24, "held"),
])  # fmt: skip
def test_columns_must_drift_and_less_with_more_iterations(iterations, value, status):
    change = in_seed_three("log_column", None, value, measures="drift", iterations=iterations)
    assert outcome("Sinkhorn lets the columns drift", change).status == status


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize(("gain", "status"), [(2.0, "held"), (2.001, "not held"), (math.nan, "not held")])
def test_mhc_is_bounded_at_all_times_with_clipping_and_without(way, clipped, gain, status):
    change = in_seed_three("gains", f"composite_{way}_gain", gain, connection="mHC", clipped=clipped, matched=True)
    assert outcome("mHC bounds the gain", change).status == status


@pytest.mark.parametrize(("gain", "clipped", "status"), [(5.0, True, "held"), (4.99, True, "not held"),
                                                         (1.0, False, "held")])  # fmt: skip
def test_hc_explodes_in_every_seed_with_clipping(gain, clipped, status):
    def change(config, seed, values):
        if seed == 3 and config.get("connection") == "HC" and config["clipped"] == clipped:
            values["gains"] = [dict.fromkeys(values["gains"][0], gain)]
        return values

    assert outcome("HC lets the gain explode", change).status == status


@pytest.mark.parametrize(("better", "worse"), [("HC", "residual"), ("mHC", "HC"), ("gated residual", "mHC")])
@pytest.mark.parametrize(("ahead", "status"), [(0.01, "held"), (0.0005, "not held"), (-0.01, "not held")])
def test_a_connection_beats_another_by_an_exact_test(better, worse, ahead, status):
    def change(config, seed, values):
        if config.get("connection") == better:
            values["train_loss"] -= ahead
        return values

    found = outcome(f"{better} beats {worse}", change)
    assert found.status == status
    told = found.numbers[f"{better} - {worse}"]
    assert told["value"] == pytest.approx(-ahead)
    assert told["low"] <= told["value"] <= told["high"]
    assert ("mHC with the residual network's branches, loss" in found.numbers) == ("mHC" in (better, worse))


@pytest.mark.parametrize(("behind", "status"), [(0.0099, "held"), (0.0101, "not held"), (-1.0, "held")])
def test_no_mixing_may_be_worse_by_a_margin(behind, status):
    def change(config, seed, values):
        if config.get("connection") == "identity HC":
            values["train_loss"] += behind
        return values

    assert outcome("no mixing is as good", change).status == status


@pytest.mark.parametrize(("rise", "finite", "surges"), [(0.5, True, False), (0.501, True, True), (0.0, False, True)])
@pytest.mark.parametrize("clipped", [True, False])
def test_a_surge_is_half_a_nat_or_no_number(rise, finite, surges, clipped):
    def change(config, seed, values):
        if seed == 3 and config.get("connection") == "HC" and config["clipped"] == clipped:
            values |= {"largest_rise": rise, "finite": finite}
        return values

    crashed, unstable = outcome("nothing crashed", change), outcome("HC is unstable without clipping", change)
    assert crashed.status == ("not held" if surges and clipped else "held")
    assert unstable.status == ("held" if surges and not clipped else "not held")


@pytest.mark.parametrize(("ratio", "status"), [(1.1, "held"), (1.11, "not held")])
def test_the_constraint_may_cost_a_tenth(ratio, status):
    change = in_seed_three("time", "mHC", ratio, measures="cost")
    assert outcome("the constraint is cheap", change).status == status


def test_rises_are_counted_from_the_least_loss_before():
    assert hyper_connections._largest_rise([3.0, 2.0, 2.2, 1.0, 1.5]) == pytest.approx(0.5)
    assert hyper_connections._largest_rise([3.0, 2.0, 1.0]) == 0
    assert hyper_connections._largest_rise([3.0, math.nan]) == math.inf
    assert hyper_connections._bounded(math.nan, "abc") == pytest.approx(math.log(3))
    steps, means = hyper_connections._thinned([float(i) for i in range(120)])
    assert (steps[:2], steps[-1], means[:2]) == ([3, 6], 120, [1.0, 4.0])


def test_selection_uses_other_seeds_and_other_text(monkeypatch):
    asked = []

    def train(config, seed, lr, part):
        asked.append((seed, lr, part))
        return {"loss": abs(lr - 0.003) + seed / 1e6}

    monkeypatch.setattr(hyper_connections, "_train", train)
    settings = STUDY.resolve("small", {"select": True, "lr_grid": (0.001, 0.003), "seeds": 2})
    cells = [c for c in STUDY.configurations(settings, range(2)) if c.config["measures"] == "training"]
    assert all("lr" not in cell.config for cell in cells)
    values = STUDY.run(cells[0].config, cells[0].seeds)
    assert [value["lr"] for value in values] == [0.003, 0.003]
    assert {seed for seed, _, part in asked if part == "validation"} == {100, 101}
    assert [(seed, lr) for seed, lr, part in asked if part == "test"] == [(0, 0.003), (1, 0.003)]


def test_hc_is_also_trained_at_the_rate_that_mhc_chooses(monkeypatch):
    asked = []

    def train(config, seed, lr, part):
        asked.append((config["connection"], part))
        return {"loss": lr}

    def arm(**changes):
        cells = STUDY.configurations(STUDY.resolve("small", changes), range(1))
        return next(cell.config for cell in cells if cell.config.get("rate_of"))

    monkeypatch.setattr(hyper_connections, "_train", train)
    assert (arm()["connection"], arm()["lr"]) == ("HC", hyper_connections.LEARNING_RATES["mHC"])
    assert STUDY.run(arm(select=True, lr_grid=(0.1,)), [0])[0]["lr"] == 0.1
    assert asked == [("mHC", "validation"), ("mHC", "validation"), ("HC", "test")]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    with ThreadPoolExecutor(1) as pool:
        return execute(STUDY, scale="smoke", out=tmp_path_factory.mktemp("runs"), executor=pool)


def test_the_smoke_scale_runs_through_and_the_report_shows_it(smoke):
    assert failures(smoke) == {}
    assert {claim["status"] for claim in claims(smoke).values()} == {"not decided"}
    drawn = figures(smoke)
    assert all(figure["series"] for figure in drawn.values())
    assert {s["group"] for s in drawn["losses"]["series"]} == {
        *CONNECTIONS, "mHC, residual's branches", "HC, mHC's rate",
    }  # fmt: skip
    assert len(drawn["loss_difference"]["series"]) == 2 * (len(CONNECTIONS) - 1)
    page = render_report([smoke])
    for text in ("Hyper-connections and manifold-constrained ones", "Composite gain by layer", "mHC beats HC"):
        assert text in page


def test_a_result_is_the_same_again(smoke):
    cells = STUDY.configurations(STUDY.resolve("smoke"), range(2))
    (cell,) = [c for c in cells if c.config.get("connection") == "HC" and not c.config["clipped"] and c.seeds == (1,)]
    assert STUDY.run(cell.config, [1])[0] == results(smoke)[cell.key(1)]


def test_costs_count_parameters_and_state(smoke):
    ((config, values),) = [
        (e["config"], e["values"])
        for e in smoke.events("result")
        if e["config"]["measures"] == "cost" and not e["seed"]
    ]
    dim, depth = config["dim"], config["depth"]
    assert values["state"]["residual"] == dim
    assert values["state"]["mHC"] == values["state"]["gated residual"] == 4 * dim
    assert values["state"]["AttnRes"] == (depth + 1) * dim
    assert values["of_connections"]["residual"] == 0
    assert values["of_connections"]["mHC"] == depth * (24 * (4 * dim + 1) + 3)
    assert values["time"]["residual"] == 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_size": 0}, "batch_size must be above 0"), ({"trials": 0}, "trials must be above 0"),
    ({"steps": 0}, "steps must be above 0"), ({"depht": 4}, "has no setting 'depht'"),
])  # fmt: skip
def test_bad_settings(changes, message):
    with pytest.raises(UsageError, match=message):
        STUDY.configurations(STUDY.resolve("small", changes), range(2))


@pytest.mark.parametrize(("changes", "message"), [
    ({"depth": 5}, "depth must be even"), ({"dim": 16}, "leave no unit"), ({"heads": 3}, "heads"),
    ({"device": "abacus"}, "device 'abacus' cannot be used here"),
])  # fmt: skip
def test_bad_sizes_fail_their_cells_with_a_sentence(changes, message):
    cells = STUDY.configurations(STUDY.resolve("smoke", changes), range(1))
    (cell,) = [c for c in cells if c.config.get("connection") == "mHC" and c.config["matched"] and c.config["clipped"]]
    with pytest.raises(UsageError, match=message):
        STUDY.run(cell.config, [0])
