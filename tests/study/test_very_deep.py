from __future__ import annotations

from itertools import product

import pytest
import torch

from levada.studies import very_deep
from levada.studies.very_deep_claims import adjusted
from levada.study import Results
from levada.study.data import mnist1d
from levada.study.training import Recipe, error, measure_statistics, train

STUDY = very_deep.STUDY
SEEDS = range(8)
DEEP = {"depths": (20, 110, 1202)}
# Spread over seeds that is larger than any effect here: what is compared is compared within a seed.
OF_SEED = [0.0, 0.03, 0.01, 0.05, 0.02, 0.07, 0.04, 0.06]


def outcome(claim, test=lambda depth, survival: 0.1, train=0.0, left_out=None, changes=DEEP, jitter=None):
    settings = STUDY.resolve("small", changes)
    cells = list(STUDY.configurations(settings, SEEDS))
    values = {}
    for cell in cells:
        depth, survival = cell.config["depth"], cell.config["survival"]
        blocks = depth // 2 - 1
        curves = {"steps": [1.0], "loss": [1.0]}
        share = (left_out or (lambda blocks: (blocks + 1) / (4 * blocks)))(blocks) if survival < 1 else 0.0
        for seed in cell.seeds:
            noise = jitter(depth, survival, seed) if jitter else 1e-4 * ((3 * seed + depth) % 5)
            values[cell.key(seed)] = {
                "test_error": test(depth, survival) + OF_SEED[seed] + noise,
                "train_error": train if seed == 3 and depth == max(settings["depths"]) else 0.0, "blocks": blocks,
                "evaluations": round((1 - share) * blocks * settings["steps"]), "curves": curves,
            }  # fmt: skip
    (tested,) = [c for c in STUDY.claims(settings) if c.name == claim]
    return tested.test(Results(cells, values)), Results(cells, values)


def by_depth(shallow, middle, deepest, arm=1.0):
    errors = {20: shallow, 110: middle, 202: deepest, 1202: deepest}
    return lambda depth, survival: errors[depth] if survival == arm else 0.5


COMPARISONS = [
    ("the more layers the better", 1.0, lambda more, less: by_depth(more, (more + less) / 2, less)),
    ("the deepest overfits", 1.0, lambda more, less: by_depth(0.5, less, more)),
    ("stochastic depth improves the test error", 1.0, lambda more, less: lambda d, s: less if s < 1 else more),
    ("with stochastic depth more layers pay", 1.0, lambda more, less: by_depth(0.5, more, less, 0.5)),
]


@pytest.mark.parametrize(("claim", "_", "errors"), COMPARISONS, ids=[name for name, *_ in COMPARISONS])
def test_r10_a_gain_in_every_seed_holds_its_absence_refutes_and_the_rest_is_open(claim, _, errors):
    found, _ = outcome(claim, errors(0.10, 0.09))
    assert found.status == "held"
    assert found.statistic.p == 2 / 2**8, "exact, and smaller than what spread between seeds allows"
    assert found.numbers["mean gain, points"] == pytest.approx(1, abs=0.05)
    assert outcome(claim, errors(0.09, 0.10))[0].status == "not held"

    def wild(depth, survival, seed):
        """Gains of some two points either way."""
        return 0.02 * (-1) ** seed * (depth > 110) * (1 if survival == 1 else -1)

    assert outcome(claim, errors(0.10, 0.10))[0].status == "not held", "a gain of a point is excluded"
    found, _ = outcome(claim, errors(0.10, 0.098), jitter=wild)
    assert found.status == "not decided"
    assert "none of 1 point excluded" in found.reason


def test_r10_the_family_is_adjusted_together():
    # The other three have nothing: the one that has p = 2 / 256 alone has 4 times that in the family.
    found, _ = outcome("the deepest overfits", lambda d, s: 0.11 if (d, s) == (1202, 1.0) else 0.10)
    assert min(found.numbers["p, adjusted for 4 comparisons"], 1) == pytest.approx(4 * 2 / 2**8, rel=1e-12)
    assert adjusted({"a": 0.01, "b": 0.02, "c": 0.9, "d": 0.02}) == pytest.approx(
        {"a": 0.04, "b": 0.06, "d": 0.06, "c": 0.9}
    )


def test_r10_the_mean_must_fall_at_each_step():
    found, _ = outcome("the more layers the better", by_depth(0.10, 0.08, 0.085))
    assert found.status == "not decided"
    assert "does not fall at each step" in found.reason


@pytest.mark.parametrize(
    "claim", ["the deepest can be trained", "the deepest overfits", "with stochastic depth more layers pay"]
)
def test_r10_shallower_networks_say_nothing_about_1202_layers(claim):
    found, _ = outcome(claim, by_depth(0.1, 0.1, 0.1), changes={})
    assert found.status == "not decided"
    assert found.reason == "the deepest network of this run has 202 layers, and the statement is about 1,202"
    assert outcome(claim)[0].status != "not decided"


@pytest.mark.parametrize(("wrong", "status"), [(0.0, "held"), (0.002, "not held")])
def test_r10_one_wrong_signal_in_one_seed_is_enough(wrong, status):
    assert outcome("the deepest can be trained", train=wrong)[0].status == status
    worse = by_depth(0.1, 0.1, 0.12)
    assert outcome("the deepest overfits", worse, train=wrong)[0].status == {"held": "held"}.get(status, "not decided")


@pytest.mark.parametrize(("loss", "status"), [
    (lambda depth, seed: 0.005, "held"), (lambda depth, seed: -0.02, "held"),
    (lambda depth, seed: 0.012 * (depth == 110), "not held"),
    (lambda depth, seed: 0.02 * (-1) ** seed * (depth == 20), "not decided"),
    (lambda depth, seed: 0.02 * (-1) ** seed if depth == 20 else 0.012, "not held"),
])  # fmt: skip
def test_r10_a_loss_of_a_point_is_excluded_or_certain_or_neither(loss, status):
    found, _ = outcome(
        "stochastic depth costs no accuracy", jitter=lambda d, s, seed: (s < 1) * loss(d, seed) + 1e-5 * seed
    )
    assert found.status == status


@pytest.mark.parametrize(("share", "status"), [
    (None, "held"), (lambda blocks: 0.27, "held"), (lambda blocks: 0.205, "held"),
    (lambda blocks: 0.31 if blocks == 9 else 0.25, "not held"), (lambda blocks: 0.19, "not held"),
    # The share itself is inside, and its interval is not.
    (lambda blocks: 0.299 if blocks == 9 else 0.25, "not held"),
])  # fmt: skip
def test_r10_what_is_left_out_is_about_a_quarter_of_all_seeds_together(share, status):
    found, _ = outcome("stochastic depth saves a quarter", left_out=share)
    assert found.status == status
    assert found.numbers["20 layers, expected, (L + 1)/(4 L)"] == 10 / 36


def test_r10_every_seed_has_signals_of_its_own_and_trial_seeds_are_tested_on_others():
    config = {"examples": 500, "tested": 1000}
    drawn = very_deep._drawn(config, [0, 1])
    assert drawn.shape == (500, 2)
    assert len(set(drawn[:, 0].tolist())) == 500
    assert len(set(drawn[:, 0].tolist()) & set(drawn[:, 1].tolist())) < 150, "of 500 by chance 62 are shared"
    assert torch.equal(very_deep._drawn(config, [1]), drawn[:, 1:])
    others = very_deep._drawn(config, [1], 500, 1000)
    assert len({*others[:, 0].tolist(), *drawn[:, 1].tolist()}) == 1500


def test_r10_the_rate_with_the_least_error_on_trial_seeds_trains(monkeypatch):
    asked = []

    def fit(config, lr, seeds, learned, tested):
        asked.append((lr, tuple(seeds), tested[2] is None))
        return [{"test_error": abs(lr - 0.1)} for _ in seeds]

    monkeypatch.setattr(very_deep, "_fit", fit)
    settings = STUDY.resolve("smoke", {"random_lrs": (1.0, 2.0, 3.0)})
    first = STUDY.configurations(settings, [0, 1])[0].config
    assert [v["lr"] for v in very_deep.run({**first, "select": True}, [0, 1])] == [0.1, 0.1]
    assert asked == [*((lr, (100, 101), False) for lr in very_deep.GRID), (0.1, (0, 1), True)]
    assert first["survival"] == 0.5
    assert very_deep.run(first, [0])[0]["lr"] == 3.0, "stochastic depth has rates of its own"


def test_r10_replicas_with_signals_of_their_own_are_networks_alone():
    data, recipe = mnist1d(), Recipe(4, 10, 0.1)
    own = torch.stack([torch.arange(0, 40), torch.arange(100, 140)], 1)

    def trained(seeds, inputs, targets, examples):
        network = very_deep.SignalNetwork("residual", 6, channels=4, num_classes=10, seeds=seeds)
        curves = train(network, inputs, targets, recipe, seeds, examples=examples)
        measure_statistics(network, inputs, len(seeds), examples=examples)
        return curves.loss, error(network, inputs, targets, len(seeds), examples=examples)

    loss, wrong = trained([0, 1], data.train_inputs, data.train_targets, own)
    for seed in (0, 1):
        part = own[:, seed]
        alone, alone_wrong = trained([seed], data.train_inputs[part], data.train_targets[part], None)
        torch.testing.assert_close(loss[:, seed], alone[:, 0], rtol=1e-3, atol=1e-4)
        assert wrong[seed].item() == pytest.approx(alone_wrong[0].item(), abs=0.026), "one of 40 signals at most"


def test_r10_figures_draw_every_seed():
    _, results = outcome("the deepest overfits")
    drawn, curves = STUDY.figures(results)
    assert len(drawn.series) == len(curves.series) == 6 * 8
    assert {s.group for s in drawn.series} == {"all blocks", "stochastic depth"}


def test_r10_smoke_trains_both_arms():
    settings = STUDY.resolve("smoke")
    cells = list(STUDY.configurations(settings, range(2)))
    assert [(c.config["depth"], c.config["survival"]) for c in cells] == list(product((22, 10, 6), (0.5, 1.0)))
    for cell in cells[2:4]:
        first, second = STUDY.run(cell.config, cell.seeds)
        assert 0 < first["train_error"] <= 1
        assert first["curves"] != second["curves"], "seeds differ"
        everything = cell.config["steps"] * first["blocks"]
        assert (first["evaluations"] < everything) == (cell.config["survival"] < 1)
