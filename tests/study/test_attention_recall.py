from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from levada._errors import UsageError
from levada.report import render_report
from levada.studies import attention_recall
from levada.studies.attention_recall import STUDY
from levada.studies.attention_recall_claims import name_of
from levada.study import Results, claims, execute, failures, figures, results
from levada.study.recall import IGNORED

SEEDS = range(5)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    with ThreadPoolExecutor(1) as pool:
        return execute(STUDY, scale="smoke", out=tmp_path_factory.mktemp("runs"), executor=pool)


def measured(config, seed):
    """Values with which every claim holds."""
    if config["measures"] == "induction":
        return {"accuracy": 1.0 if config["layers"] == 2 else 0.3, "parameters": 9000}
    good = config["network"] == "attention"
    state = config.get("units", 0) or 40 if "units" in config else 0
    few = [good or pairs == config["pairs"][0] or 2 * pairs <= state for pairs in config["pairs"]]
    accuracy = [0.99 if learned else 0.4 for learned in few]
    looked = [{"entropy": 0.05, "weight": 0.99, "around": [0.0] * 17}] * len(accuracy)
    return {"accuracy": accuracy, "lookup": looked if good else [], "state": state, "parameters": 50_000}


def outcome(claim, spoil=None, scale="full"):
    """What a claim says of such values, one seed's being spoilt where `spoil` returns others."""
    settings = STUDY.resolve(scale)
    cells = STUDY.configurations(settings, SEEDS)
    values = {}
    for cell in cells:
        for seed in cell.seeds:
            found = measured(cell.config, seed)
            if seed == 3 and spoil is not None:
                found = {**found, **(spoil(cell.config, found) or {})}
            values[cell.key(seed)] = found
    (tested,) = [c for c in STUDY.claims(settings) if c.name == claim]
    return tested.test(Results(cells, values))


def at(place, share):
    def spoil(config, found):
        changed = list(found["accuracy"])
        changed[place] = share
        return {"accuracy": changed}

    return spoil


def of(spoil, **fields):
    return lambda config, found: spoil(config, found) if fields.items() <= config.items() else None


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize(
    "claim",
    ["attention looks up", "a fixed state fills up", "attention is ahead at equal size", "induction takes two layers"],
)
def test_every_claim_can_hold(claim, scale):
    assert outcome(claim, scale=scale).status == "held"


@pytest.mark.parametrize(("share", "status"), [(0.99, "held"), (0.9899, "not held")])
def test_attention_looks_up_in_every_seed(share, status):
    found = outcome("attention looks up", of(at(-1, share), network="attention"))
    assert found.status == status
    assert found.numbers["chance"] == 1 / 64


@pytest.mark.parametrize(
    ("spoil", "status", "met"),
    [
        (of(at(-1, 0.4999), network="GRU", units=32), "held", 5),
        (of(at(-1, 0.5), network="GRU", units=32), "not held", 4),  # 64 pairs, 32 numbers
        (of(at(-2, 0.9), network="GRU", units=32), "held", 5),  # 32 pairs are no more than the state has numbers
        (of(at(-2, 0.9), network="GRU", units=8), "not held", 4),
        (of(at(0, 0.899), network="LSTM"), "not held", 4),  # who does not learn few pairs shows nothing
        (of(at(1, 0.899), network="GRU", units=32), "not held", 4),  # nor who learns no more than very few
        (of(at(-1, 1.0), network="convolution"), "held", 5),  # has no state
    ],
)
def test_a_fixed_state_fills_up_where_the_pairs_are_more_than_its_numbers(spoil, status, met):
    found = outcome("a fixed state fills up", spoil)
    assert (found.status, found.statistic.value) == (status, met)


def test_where_no_state_is_smaller_than_the_pairs_nothing_is_shown():
    settings = STUDY.resolve("small")
    cells = [c for c in STUDY.configurations(settings, SEEDS) if c.config.get("network") == "GRU"]
    values = {c.key(s): {**measured(c.config, s), "state": 64} for c in cells for s in c.seeds}
    (tested,) = [c for c in STUDY.claims(settings) if c.name == "a fixed state fills up"]
    assert tested.test(Results(cells, values)).status == "not held"


@pytest.mark.parametrize("network", ["GRU", "LSTM", "convolution"])
def test_attention_is_ahead_of_each_that_has_its_size(network):
    name = "attention is ahead at equal size"
    same = {} if network == "convolution" else {"units": 0}
    assert outcome(name, of(at(-1, 0.9899), network=network, **same)).status == "held"
    assert outcome(name, of(at(-1, 0.99), network=network, **same)).status == "not held"
    assert outcome(name, of(at(-1, 1.0), network="GRU", units=8)).status == "held"  # is smaller


@pytest.mark.parametrize(("entropy", "status"), [(0.0999, "held"), (0.1, "not held")])
def test_the_last_stage_decides_on_the_entropy(entropy, status):
    def spoil(config, found):
        return {"lookup": [*({**one, "entropy": 9.0} for one in found["lookup"][:-1]), {**found["lookup"][-1],
                "entropy": entropy}]}  # fmt: skip

    assert outcome("attention is on the right key", of(spoil, network="attention")).status == status
    small = outcome("attention is on the right key", scale="small")
    assert (small.status, small.reason) == ("not decided", "no configuration of this run measures it")


@pytest.mark.parametrize(
    ("layers", "share", "status"),
    [(2, 0.99, "held"), (2, 0.9899, "not held"), (1, 0.4999, "held"), (1, 0.5, "not held")],
)
def test_induction_takes_two_layers_in_every_seed(layers, share, status):
    found = outcome(
        "induction takes two layers", of(lambda *_: {"accuracy": share}, measures="induction", layers=layers)
    )
    assert found.status == status
    assert found.numbers["chance"] == 1 / 31


def test_the_smoke_scale_runs_through_and_the_report_shows_it(smoke):
    assert failures(smoke) == {}
    assert {claim["status"] for claim in claims(smoke).values()} == {"not decided"}
    drawn = figures(smoke)
    assert set(drawn) == {"accuracy_by_pairs", "attention_around", "induction"}
    assert len(drawn["accuracy_by_pairs"]["series"]) == 4 * 2 + 1
    assert len(drawn["attention_around"]["series"]) == 2 * 2
    assert len(drawn["induction"]["series"]) == 2 * 2 + 1
    assert "a fixed state fills up" in render_report([smoke])


def test_a_result_is_the_same_again(smoke):
    cells = STUDY.configurations(STUDY.resolve("smoke"), range(2))
    for cell in (cells[0], cells[-1]):
        (seed,) = cell.seeds
        assert STUDY.run(cell.config, [seed])[0] == results(smoke)[cell.key(seed)]


def test_who_is_compared_has_as_many_parameters():
    cells = STUDY.configurations(STUDY.resolve("small"), [0])
    sizes = {}
    for cell in cells:
        if cell.config["measures"] == "recall":
            sizes[name_of(cell.config)] = attention_recall._size(attention_recall._builder(cell.config))
    assert sizes["GRU, as many parameters"] == pytest.approx(sizes["attention"], rel=0.01)
    assert sizes["convolution"] == pytest.approx(sizes["attention"], rel=0.03)
    assert sizes["GRU, 32 units"] < sizes["attention"] / 2


def test_the_convolution_sees_the_whole_sequence():
    config = next(
        c.config for c in STUDY.configurations(STUDY.resolve("smoke"), [0]) if c.config.get("network") == "convolution"
    )
    torch.manual_seed(0)
    model = attention_recall._builder(config)().double()
    tokens = torch.ones(1, 16, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 0] = 2
    assert bool((model(tokens)[0, -1] != model(changed)[0, -1]).any())


def test_a_mixed_batch_has_the_small_and_the_whole_vocabulary():
    batch = attention_recall._draw_mixed(2, 64, 40, torch.Generator().manual_seed(0))
    assert batch.tokens.shape == (40, 8)
    largest = batch.tokens.amax(-1)
    assert int(largest[:30].max()) == 4
    assert float((largest[30:] > 4).double().mean()) > 0.8
    assert ((batch.targets != IGNORED).sum(-1) == 2).all()


def test_settings_that_do_not_fit_are_told():
    for changes in ({"pairs": (4, 2, 8, 16)}, {"pairs": (2, 4)}):
        with pytest.raises(UsageError, match="pairs must grow, and steps be as many numbers"):
            STUDY.configurations(STUDY.resolve("small", changes), [0])
