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
    growth_per_layer,
    mean_square_gain,
    near_identity_logits,
    perturbed_identities,
    product_over_depth,
    sum_statistics,
)

# Validation loss of the two best rates of each connection, on the seeds 100 and 101, and 102 and 103 where near.
SELECTED = {
    "residual": {0.003: [2.2269, 2.2327, 2.2419, 2.2312], 0.01: [2.2325, 2.2818, 2.2245, 2.1616]},
    "HC": {0.003: [2.2126, 2.2173], 0.01: [2.1235, 2.0844]},
    "mHC": {0.003: [2.2294, 2.2433], 0.01: [2.2858, 2.2915]},
    "identity HC": {0.003: [2.2160, 2.2253, 2.2380, 2.2338], 0.01: [2.2365, 2.2515, 2.2687, 2.2869]},
    "gated residual": {0.003: [2.2208, 2.2225], 0.01: [2.1752, 2.1841]},
    "AttnRes": {0.003: [2.1812, 2.1976, 2.1952, 2.2194], 0.01: [2.1735, 2.2027, 2.2144, 2.2288]},
    "DenseFormer": {0.003: [2.2141, 2.2322, 2.2295, 2.2206], 0.01: [2.1966, 2.2288, 2.2230, 2.1368]},
}


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


def test_growth_by_layer_is_the_factor_of_the_closed_form():
    for epsilon in (0.05, 0.2):
        found = growth_per_layer(perturbed_identities(epsilon, 60, 4, 2000, 3))
        error = found.std() / len(found) ** 0.5
        assert abs(found.mean() - (1 + 4 * epsilon**2)) < 4 * error
        assert error < 0.002
    two = torch.tensor([[[1.0, 1.0], [0.0, 2.0]], [[0.5, 0.0], [0.0, 0.0]]])
    assert growth_per_layer(two) == pytest.approx((8 / 2 + 1 / 8) / 2)


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
        factor = 1 + 4 * config["epsilon"] ** 2
        free = {"absolute_gain": 100.0, "gain": 90.0, "mean_square": 1.0, "growth": [factor - 0.001, factor + 0.001]}
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
    (tested,) = [c for c in STUDY.claims(STUDY.resolve("small")) if c.name == claim]
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


@pytest.mark.parametrize(("epsilon", "least"), [(0.05, 1.5), (0.1, 3.0), (0.2, 20.0)])
@pytest.mark.parametrize(("factor", "status"), [(1.0, "held"), (0.999, "not held")])
def test_products_must_grow_in_every_seed(epsilon, least, factor, status):
    def change(config, seed, values):
        if config.get("epsilon") == epsilon and seed == 3:
            values["free"]["gain"] = least * factor
        return values

    assert outcome("unconstrained products explode", change).status == status


@pytest.mark.parametrize(("off", "status"), [(0.0, "held"), (0.002, "not held"), (-0.002, "not held")])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2])
def test_the_closed_form_is_judged_over_products(epsilon, off, status):
    def change(config, seed, values):
        if config.get("epsilon") == epsilon:
            values["free"]["growth"] = [factor + off for factor in values["free"]["growth"]]
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

    found = outcome("Sinkhorn keeps the rows", change)
    assert (found.status, found.statistic) == (status, None), (
        "that rows are exact is a theorem: it is not tested by seeds"
    )


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
    found = outcome("mHC bounds the gain", change)
    assert (found.status, found.statistic.p) == (status, 0.0625 if status == "held" else 0.375), "5 seeds, not 10"


@pytest.mark.parametrize(("gain", "clipped", "status"), [(5.0, True, "held"), (4.99, True, "not held"),
                                                         (1.0, False, "held")])  # fmt: skip
def test_hc_explodes_in_every_seed_with_clipping(gain, clipped, status):
    def change(config, seed, values):
        if seed == 3 and config.get("connection") == "HC" and config["clipped"] == clipped:
            values["gains"] = [dict.fromkeys(values["gains"][0], gain)]
        return values

    assert outcome("HC lets the gain explode", change).status == status


@pytest.mark.parametrize(("better", "worse"), [("HC", "residual"), ("mHC", "HC"), ("gated residual", "mHC")])
@pytest.mark.parametrize(("ahead", "status"), [
    (0.01, "held"), (0.0005, "held"), (0.0003, "not held"), (-0.01, "not held"),
])  # fmt: skip
def test_a_connection_beats_another_by_an_interval_of_pairs(better, worse, ahead, status):
    def change(config, seed, values):
        if config.get("connection") == better:
            values["train_loss"] -= ahead + 0.0005 * (seed % 2)
        return values

    found = outcome(f"{better} beats {worse}", change)
    assert found.status == status
    told = found.numbers[f"{better} - {worse}"]
    assert told["value"] == pytest.approx(-ahead - 0.0002)
    assert told["low"] <= told["value"] <= told["high"]
    # Student's quantile with 4 degrees of freedom at 1 - .05/12 is 4.851; the standard error is 0.0005 sqrt(.3/5).
    assert told["high"] - told["value"] == pytest.approx(4.851 * 0.0005 * math.sqrt(0.3 / 5), rel=1e-3)
    assert found.statistic.p == 0.0625
    assert ("mHC with the residual network's branches, loss" in found.numbers) == ("mHC" in (better, worse))


def test_a_claim_says_that_rates_not_told_apart_differ():
    def change(config, seed, values):
        shift = {"AttnRes": -0.01, "residual": 0.0}.get(config.get("connection"))
        if shift is None or not hyper_connections._is_plain(config):
            return values
        return {**values, "train_loss": 2.0 + 0.001 * seed + shift,
                "other_rate": {"lr": 0.01, "train_loss": 2.0 + 0.001 * seed + other[config["connection"]]}}  # fmt: skip

    other = {"AttnRes": -0.02, "residual": -0.005}
    found = outcome("AttnRes beats residual", change)
    assert (found.status, found.numbers["outcome at the rates not told apart"]) == ("held", "the same")
    other = {"AttnRes": 0.0, "residual": -0.005}
    found = outcome("AttnRes beats residual", change)
    assert (found.status, found.numbers["outcome at the rates not told apart"]) == ("held", "not held in 2 of 3 pairs")
    assert found.numbers["AttnRes at 0.01 - residual at 0.003"]["value"] == pytest.approx(0.0)
    assert found.numbers["AttnRes at 0.01 - residual at 0.01"]["value"] == pytest.approx(0.005)
    assert "outcome at the rates not told apart" not in outcome("AttnRes beats residual").numbers


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

    crashed, unstable = outcome("nothing crashed", change), outcome("HC trains unstably", change)
    assert crashed.status == ("not held" if surges and clipped else "held")
    assert unstable.status == ("held" if surges and not clipped else "not held")
    assert unstable.statistic is None, "one seed is enough: there is nothing to test"


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
    assert {seed for seed, _, part in asked if part == "validation"} == {100, 101, 102, 103}
    assert len([1 for _, _, part in asked if part == "validation"]) == 2 * 4
    assert [(seed, lr) for seed, lr, part in asked if part == "test"] == [(0, 0.003), (1, 0.003)]


@pytest.mark.parametrize(("high", "expected"), [
    ([0.0, 0.1, 0.0, 0.1], (0.003, 0.01)),  # worse by .05, error .029
    ([0.0, -0.1, 0.0, -0.1], (0.01, 0.003)), ([0.02, -0.1, 0.08, -0.05], (0.003, 0.01)),  # better, within one error
    ([-0.1, -0.1, -0.1, -0.2], (0.01, None)), ([0.1, 0.1, 0.1, 0.2], (0.003, None)),
])  # fmt: skip
def test_the_lower_rate_is_chosen_within_a_standard_error(high, expected):
    assert hyper_connections._choose({0.01: [2.0 + x for x in high], 0.003: [2.0] * 4}) == expected


def test_recorded_losses_give_the_rates():
    found = {name: hyper_connections._choose(losses) for name, losses in SELECTED.items()}
    for name, (lr, other) in found.items():
        assert hyper_connections.LEARNING_RATES[name] == lr
        assert hyper_connections.OTHER_RATES.get(name) == other


def test_a_rate_not_told_apart_is_trained_as_well(monkeypatch):
    def train(config, seed, lr, part):
        return {"loss": 2.0, "train_loss": lr, "test_loss": lr + seed}

    monkeypatch.setattr(hyper_connections, "_train", train)
    plain = {"measures": "training", "connection": "AttnRes", "clipped": True, "matched": True, "lr": 0.1}
    assert STUDY.run({**plain, "other_lr": 0.2}, [3])[0]["other_rate"] == {
        "lr": 0.2, "train_loss": 0.2, "test_loss": 3.2,
    }  # fmt: skip
    assert "other_rate" not in STUDY.run(plain, [3])[0]
    wanted = {
        c.config["connection"]: c.config["other_lr"]
        for c in STUDY.configurations(STUDY.resolve("small"), range(1))
        if "other_lr" in c.config
    }
    assert wanted == hyper_connections.OTHER_RATES


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


def test_rates_are_chosen_as_they_are_used_and_hc_gets_mhcs_own(monkeypatch):
    asked = []

    def train(config, seed, lr, part):
        asked.append((part, *(config[key] for key in ("connection", "clipped", "matched")), seed, lr))
        return {"loss": lr + seed / 1e3, "train_loss": lr, "test_loss": lr}

    monkeypatch.setattr(hyper_connections, "_train", train)
    settings = STUDY.resolve("full", {"lr_grid": (0.003, 0.01)})
    chosen = {}
    for cell in STUDY.configurations(settings, range(1)):
        config = cell.config
        if config.get("connection") in ("HC", "mHC"):
            asked.clear()
            STUDY.run(config, [0])
            arm = (config["connection"], config["clipped"], config["matched"], config.get("rate_of"))
            chosen[arm] = [call[1:] for call in asked if call[0] == "validation"]
    assert chosen["HC", True, True, "mHC"] == chosen["mHC", True, True, None]
    for (name, clipped, matched, rate_of), calls in chosen.items():
        assert {call[:3] for call in calls} == {(rate_of or name, clipped, matched)}


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
        *(f"{name} at {lr:g}" for name, lr in hyper_connections.OTHER_RATES.items()),
    }  # fmt: skip
    assert "measured 13 times" in drawn["gain_in_training"]["caption"]
    assert "residual 0.003" in drawn["loss_difference"]["caption"]
    assert "After 12 steps nothing is decided." in drawn["loss_difference"]["caption"]
    assert len(drawn["loss_difference"]["series"]) == 2 * (len(CONNECTIONS) - 1)
    page = render_report([smoke])
    for text in ("Hyper-connections and manifold-constrained ones", "Composite gain by layer", "mHC beats HC"):
        assert text in page


def test_texts_follow_the_settings():
    small, full = STUDY.resolve("small"), STUDY.resolve("full")
    assert "204,800 characters: what is compared is early learning." in " ".join(STUDY.notes(small))
    assert "40,960,000 characters." in " ".join(STUDY.notes(full))
    for settings, device in ((small, "cpu"), (full, "cuda")):
        (cost,) = [claim for claim in STUDY.claims(settings) if claim.name == "the constraint is cheap"]
        assert f"on the device {device} and at a width of {settings['dim']}" in cost.correction


def test_densely_averaged_are_the_outputs_of_blocks():
    model = hyper_connections._model({**STUDY.resolve("smoke"), "connection": "DenseFormer"}, "DenseFormer", 0)
    assert [layer.connection.alpha is None for layer in model.stack] == [True, False] * 2
    assert [len(layer.connection.alpha) for layer in model.stack if layer.connection.alpha is not None] == [2, 3]


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
