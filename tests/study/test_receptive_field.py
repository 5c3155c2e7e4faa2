"""R14: its tasks, its networks side by side, and claims that hold and fail as their criteria say."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.networks import TemporalConvolutionalNetwork
from levada.probe import receptive_field as measured
from levada.studies import receptive_field
from levada.study import Results
from levada.study.data import Dataset
from levada.study.sequence_networks import convolutions, one_for_each
from levada.study.sequences import IGNORED, Replicas, accuracy, copy_memory, lagged_recall, train_sequences
from levada.theory import receptive_field as field_of
from levada.theory import visible_lags

STUDY = receptive_field.STUDY


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_recall_asks_for_the_symbol_before():
    inputs, targets = lagged_recall(3, 10, 4, generator())
    tokens = inputs.argmax(-1)
    assert inputs.shape == (3, 10, 8)
    assert bool((inputs.sum(-1) == 1).all())
    assert targets[:, :4].eq(IGNORED).all()
    assert torch.equal(targets[:, 4:], tokens[:, :6])
    assert torch.equal(targets[:, 4], tokens[:, 0])
    present, asked = lagged_recall(2, 5, 0, generator())
    assert torch.equal(present.argmax(-1), asked)


def test_right_answers_from_too_short_a_field_are_binomial():
    # A net that answers with the symbol of 3 steps before, where that of 5 before is asked: hits of all steps together
    # must vary as independent ones do.
    hits = []
    for seed in range(400):
        inputs, targets = lagged_recall(4, 45, 5, generator(seed))
        hits.append(int((inputs.argmax(-1)[:, 2:-3] == targets[:, 5:]).sum()))
    counts = torch.tensor(hits).double()
    assert float(counts.mean()) == pytest.approx(160 / 8, abs=4 * math.sqrt(17.5 / 400))
    assert float(counts.var()) == pytest.approx(160 * 7 / 64, rel=0.25)


def test_copy_memory_is_that_of_the_paper():
    inputs, targets = copy_memory(5, 60, generator())
    tokens = inputs.argmax(-1)
    assert inputs.shape == (5, 80, 10)
    assert bool(((tokens[:, :10] >= 1) & (tokens[:, :10] <= 8)).all())
    assert not tokens[:, 10:69].any()
    assert bool((tokens[:, 69:] == 9).all())
    assert not targets[:, :70].any()
    assert torch.equal(targets[:, 70:], tokens[:, :10])


@pytest.mark.parametrize("together", [True, False])
def test_seeds_side_by_side_are_each_the_network_of_its_seed(together):
    def build(seed):
        torch.manual_seed(seed)
        return TemporalConvolutionalNetwork([1, 2], 6, inputs=8, outputs=8, kernel_size=2)

    def draw(generator):
        return lagged_recall(4, 12, 2, generator)

    both = Replicas([build(0), build(1)], together=together)
    losses = train_sequences(both, draw, steps=20, lr=0.01, seeds=[0, 1])
    alone = Replicas([build(1)], together=together)
    single = train_sequences(alone, draw, steps=20, lr=0.01, seeds=[1])
    torch.testing.assert_close(losses[:, 1:], single, rtol=1e-4, atol=1e-5)
    assert losses[-1, 1] < losses[0, 1]
    right, asked = accuracy(both, draw, [7, 8])
    assert accuracy(alone, draw, [8]) == (right[1:], asked[1:])
    assert asked == [40, 40]
    assert accuracy(both, draw, [7, 8], last=3)[1] == [12, 12]


def test_the_stacked_networks_stay_out_of_the_parameters():
    nets = [nn.Linear(2, 3) for _ in range(4)]
    assert sum(p.numel() for p in Replicas(nets).parameters()) == 4 * 9
    assert sum(p.numel() for p in Replicas(nets, together=False).parameters()) == 4 * 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lagged_recall(2, 4, 4, generator()), "steps must be at least 5, got 4. Without a step after the lag"),
        (lambda: lagged_recall(2, 4, -1, generator()), "lag must be at least 0, got -1"),
        (lambda: lagged_recall(0, 4, 1, generator()), "batch must be at least 1, got 0"),
        (lambda: lagged_recall(2, 4, 1, generator(), 1), "symbols must be at least 2, got 1"),
        (lambda: copy_memory(2, 0, generator()), "delay must be at least 1, got 0"),
    ],
)
def test_bad_input_says_the_rule(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def cells(scale="small", **changes):
    return list(STUDY.configurations(STUDY.resolve(scale, changes), range(5)))


def test_each_configuration_knows_whether_its_lag_is_seen():
    recall = [cell.config for cell in cells() if cell.config["measures"] == "recall"]
    for config in recall:
        dilations = config["dilations"]
        seen = visible_lags([config["kernel_size"]] * len(dilations), dilations)
        assert config["beyond"] == (config["lag"] not in seen)
        if config["arm"] == "field":
            assert seen == tuple(range(16))
    depths = {(c["kind"], c["lag"]): [] for c in recall if c["arm"] == "depth"}
    for config in recall:
        if config["arm"] == "depth":
            depths[config["kind"], config["lag"]].append((len(config["dilations"]), config["beyond"]))
    assert depths["undilated", 8] == [(4, False), (3, True)]
    assert depths["dilated", 8] == [(3, False), (2, True)]
    assert {c["lag"] for c in recall if c["arm"] == "field" and c["beyond"]} == {16, 17, 20, 31}


def test_copiers_have_as_many_parameters_and_a_longer_delay_is_refused():
    sizes = {}
    for cell in cells(copy_steps=1, batch_size=1):
        if cell.config["measures"] == "copy":
            (values,) = STUDY.run(cell.config, [0])
            sizes[cell.config["network"]] = values["parameters"]
            assert values["field"] == {"TCN": 106, "TCN, field too short": 8}.get(cell.config["network"])
            assert values["asked"] == 2560
    assert {name: size for name, size in sizes.items() if "short" not in name} == {
        "GRU": 6650, "TCN": 6632, "RNN": 6613, "LSTM": 6606,
    }  # fmt: skip
    (config,) = [c.config for c in cells(copy_delay=100) if c.config.get("network") == "TCN"]
    with pytest.raises(UsageError, match="lag must be below the receptive field of 106 steps, got 110"):
        STUDY.run(config, [0])


def test_what_is_seen_is_learnt_and_nothing_else():
    found = {}
    for cell in cells(steps=120, dim=32):
        config = cell.config
        if config.get("arm") == "depth" and config["lag"] == 4 and config["kind"] == "dilated":
            found[config["beyond"]] = STUDY.run(config, [0, 1])
    assert all(values["right"] / values["asked"] > 0.99 for values in found[False])
    assert all(abs(values["right"] / values["asked"] - 1 / 8) < 0.02 for values in found[True])


def ideal(config, seed):
    """What every claim expects."""
    if config["measures"] == "field":
        width = math.sqrt(config["depth"] * 2 / 3) * (1 + 0.01 * seed)
        return {"extent": 2 * config["depth"] + 1, "deviation": [width, width, width]}
    asked, curve = 8000, {"steps": [1.0], "loss": [1.0]}
    guessed = config.get("beyond", config.get("network") not in ("TCN", "whole field", None))
    return {"right": asked // 8 if guessed else asked, "asked": asked, "curve": curve, "parameters": 1, "field": 8}


def outcomes(change=lambda config, seed, values: None, scale="small"):
    settings, grid = STUDY.resolve(scale), cells(scale)
    values = {}
    for cell in grid:
        for seed in cell.seeds:
            values[cell.key(seed)] = copy.deepcopy(ideal(cell.config, seed))
            change(cell.config, seed, values[cell.key(seed)])
    found = Results(grid, values)
    return {claim.name: claim.test(found) for claim in STUDY.claims(settings)}, found


def test_what_is_expected_holds():
    for scale in ("small", "full"):
        found, results = outcomes(scale=scale)
        assert {outcome.status for outcome in found.values()} == {"held"}
        cliff, losses, widths = STUDY.figures(results)
        assert len([s for s in cliff.series if s.style == "measured"]) == 2 * 10 * 5
        assert len([s for s in losses.series if s.style == "measured"]) == 5 * 5
        assert len([s for s in widths.series if s.style == "measured"]) == 2 * 5 * 5
        (guess,) = [s for s in losses.series if s.style == "reference"]
        assert guess.y[0] == pytest.approx(0.2599, abs=1e-4)


SIGMA = math.sqrt(5 * 8000 * 7 / 64)  # of the right answers of five seeds


@pytest.mark.parametrize(
    ("claim", "fields", "seed", "right", "status"),
    [
        ("nothing beyond the field", {"arm": "field", "kind": "dilated", "lag": 16}, 3, 1000 + 2.9 * SIGMA, "held"),
        ("nothing beyond the field", {"arm": "field", "kind": "dilated", "lag": 16}, 3, 1000 + 3.1 * SIGMA, "not held"),
        ("nothing beyond the field", {"arm": "field", "kind": "undilated", "lag": 31}, 0, 1000 - 3.1 * SIGMA,
         "not held"),
        ("all within the field", {"arm": "field", "kind": "undilated", "lag": 15}, 4, 7921, "held"),
        ("all within the field", {"arm": "field", "kind": "undilated", "lag": 15}, 4, 7919, "not held"),
        ("depth needed", {"arm": "depth", "beyond": False, "kind": "dilated", "lag": 8}, 1, 7919, "not held"),
        ("depth needed", {"arm": "depth", "beyond": True, "kind": "dilated", "lag": 8}, 1, 1000 + 3.1 * SIGMA,
         "not held"),
        ("to see is to learn", {"arm": "reach", "kind": "undilated"}, 2, 7919, "not held"),
        ("to see is to learn", {"arm": "reach", "kind": "dilated"}, 2, 0, "not held"),
        ("convolutions copy, recurrent networks do not", {"network": "TCN"}, 2, 7919, "not held"),
        ("convolutions copy, recurrent networks do not", {"network": "GRU"}, 2, 2001, "not held"),
        ("convolutions copy, recurrent networks do not", {"network": "GRU"}, 2, 2000, "held"),
        ("too short a field copies nothing", {"network": "TCN, field too short"}, 2, 1000 + 3.1 * SIGMA, "not held"),
    ],
)  # fmt: skip
def test_one_seed_or_one_lag_decides(claim, fields, seed, right, status):
    def change(config, at, values):
        if at == seed and all(config.get(key) == value for key, value in fields.items()):
            values["right"] = round(right)

    found, _ = outcomes(change)
    assert found[claim].status == status
    assert all(outcome.status == "held" for name, outcome in found.items() if name != claim)


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda depth: depth**0.049, "held"),
        (lambda depth: depth**0.051, "not held"),
        (lambda depth: depth**-0.051, "not held"),
    ],
)
@pytest.mark.parametrize("activation", ["linear", "ReLU"])
def test_the_exponent_decides_in_both_kinds(spoil, status, activation):
    def change(config, seed, values):
        if config.get("activation") == activation:
            values["deviation"] = [value * spoil(config["depth"]) for value in values["deviation"]]

    found, _ = outcomes(change)
    assert found["the effective field grows as the root of depth"].status == status


def test_the_exponents_interval_is_of_seeds_not_of_activations():
    # Both activations of a seed have the same weights: what they share must not count twice.
    def change(config, seed, values):
        if config["measures"] == "field":
            values["deviation"] = [value * config["depth"] ** (0.01 * seed) for value in values["deviation"]]

    statistic = outcomes(change)[0]["the effective field grows as the root of depth"].statistic
    assert statistic.value == pytest.approx(0.52)
    # t(4) at .975, and the deviation of 0, .01, ..., .04
    assert statistic.high - statistic.value == pytest.approx(2.776445 * 0.01 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)


@pytest.mark.parametrize("dilations", [[1] * 7, [1, 2, 4]])
def test_the_last_lag_in_sight_has_the_share_that_the_correction_says(dilations):
    lag, layers = 14, len(dilations)
    (claim,) = [claim for claim in STUDY.claims(STUDY.resolve("small")) if claim.name == "to see is to learn"]
    assert "(1/2k)^n" in claim.correction
    shares = []
    for seed, network in enumerate(one_for_each(range(3), lambda: convolutions(dilations, 32, 8, 8, 3))):
        inputs, _ = lagged_recall(8, 40, lag, generator(seed))
        shares.append(float(measured(network, inputs, axes=1, position=-1, seed=seed).energy[-1 - lag]))
    assert sum(shares) / 3 == pytest.approx(6.0**-layers, rel=0.3)  # (1/3)^n is 2^n times as much


def test_a_wrong_exact_field_is_seen():
    def change(config, seed, values):
        if config["measures"] == "field" and config["depth"] == 16 and seed == 4:
            values["extent"] += 1

    assert outcomes(change)[0]["the effective field grows as the root of depth"].status == "not held"


def test_the_effective_field_is_measured():
    (config,) = [c.config for c in cells() if c.config.get("activation") == "ReLU" and c.config["depth"] == 8]
    (values,) = STUDY.run(config, [0])
    assert values["extent"] == len(values["energy"]) == 17
    assert values["deviation"][0] == pytest.approx(math.sqrt(16 / 3), rel=0.25)
    assert values["deviation"][1] <= values["deviation"][0] <= values["deviation"][2]


def test_digits_are_read_to_the_end(monkeypatch):
    images, labels = torch.randint(256, (40, 28, 28), dtype=torch.uint8), torch.randint(10, (40,))
    monkeypatch.setattr(receptive_field, "mnist", lambda: Dataset("few", images, labels, images[:20], labels[:20]))
    for cell in cells("full", digit_steps=1):
        if cell.config["measures"] == "digits":
            (values,) = STUDY.run({**cell.config, "batch_size": 4}, [0])
            assert values["asked"] == 20
            assert 0 <= values["right"] <= 20

    def change(config, seed, values):
        if config.get("network") == "short field" and seed == 1:
            values["right"] = values["asked"]

    assert outcomes(change, "full")[0]["digits need the whole field"].status == "not held"
    assert "digits need the whole field" not in outcomes()[0]


def test_pressures_are_read_to_the_end(monkeypatch):
    signals, pigs = torch.randn(12, 30, generator=generator()), torch.arange(12) % 6
    monkeypatch.setattr(receptive_field, "pig_cvp", lambda: Dataset("few", signals, pigs, signals[:7], pigs[:7]))
    fields = {}
    for cell in cells("full", pressure_steps=1):
        if cell.config["measures"] == "pressure":
            dilations = cell.config["dilations"]
            fields[cell.config["network"]] = field_of([7] * len(dilations), dilations)
            (values,) = STUDY.run({**cell.config, "batch_size": 4}, [0])
            assert values["asked"] == 7
            assert 0 <= values["right"] <= 7
    assert fields == {"whole field": 3067, "short field": 55}

    def change(config, seed, values):
        if config["measures"] == "pressure" and config["network"] == "short field" and seed == 1:
            values["right"] = values["asked"]

    found = outcomes(change, "full")[0]
    assert found["pressures need the whole field"].status == "not held"
    assert found["digits need the whole field"].status == "held"
    assert "pressures need the whole field" not in outcomes()[0]


def test_signals_are_read_by_the_scale_of_the_training_part(monkeypatch):
    signals, pigs, read = torch.randn(8, 30, generator=generator()) * 3 + 7, torch.arange(8) % 2, []
    monkeypatch.setattr(receptive_field, "pig_cvp", lambda: Dataset("few", signals, pigs, signals + 50, pigs))
    monkeypatch.setattr(
        receptive_field, "accuracy", lambda model, draw, seeds: read.append(draw(None)[0]) or ([0], [8])
    )
    (config,) = [c.config for c in cells("full", pressure_steps=1) if c.config.get("network") == "short field"][:1]
    STUDY.run({**config, "batch_size": 4}, [0])
    torch.testing.assert_close(read[0][..., 0], (signals + 50 - signals.mean()) / signals.std())


def test_every_smoke_cell_runs():
    settings = STUDY.resolve("smoke")
    grid = list(STUDY.configurations(settings, range(2)))
    values = {
        cell.key(s): v for cell in grid for s, v in zip(cell.seeds, STUDY.run(cell.config, cell.seeds), strict=True)
    }
    found = Results(grid, values)
    assert not found.missing()
    assert {claim.test(found).status for claim in STUDY.claims(settings)} == {"not decided"}
    assert all(figure.series for figure in STUDY.figures(found))
