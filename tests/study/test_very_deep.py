from __future__ import annotations

from statistics import fmean, stdev

import pytest
import torch

from levada.studies import very_deep
from levada.study import Results
from levada.study.lesions import RandomBlocks, linear_decay
from levada.study.replicas import SignalNetwork

STUDY = very_deep.STUDY
SHARE = {20: 1 - 10 / 36, 110: 1 - 55 / 216, 402: 1 - 201 / 800}  # of L blocks (3 L - 1) / (4 L) run


def outcome(claim, test=lambda depth, survival, seed: 0.1, train=lambda depth, seed: 0.0, evaluations=None):
    settings = STUDY.resolve("small")
    cells = list(STUDY.configurations(settings, range(5)))
    values = {}
    for cell in cells:
        depth, survival = cell.config["depth"], cell.config["survival"]
        for seed in cell.seeds:
            share = 1.0 if survival == 1 else (evaluations or SHARE.get)(depth)
            values[cell.key(seed)] = {
                "test_error": test(depth, survival, seed) + seed / 1e4, "train_error": train(depth, seed),
                "evaluations": share, "curves": {"steps": [1.0], "loss": [1.0], "error": [0.5]},
            }  # fmt: skip
    (tested,) = [c for c in STUDY.claims(settings) if c.name == claim]
    return tested.test(Results(cells, values)), Results(cells, values)


def by_depth(shallow, middle, deepest, survival=1.0):
    errors = {20: shallow, 110: middle, 402: deepest}
    return lambda depth, at, seed: errors[depth] if at == survival else 0.5


def overlapping(depth, survival, seed):
    """Lower at the greatest depth on average, but higher in two of five seeds."""
    return {20: 0.10, 110: 0.09, 402: 0.06 if seed < 3 else 0.11}[depth]


@pytest.mark.parametrize(("claim", "test", "status"), [
    ("the more layers the better", by_depth(0.10, 0.09, 0.08), "held"),
    ("the more layers the better", by_depth(0.10, 0.07, 0.08), "not held"),
    ("the more layers the better", overlapping, "not held"),
    ("the deepest overfits", by_depth(0.10, 0.08, 0.09), "held"),
    ("the deepest overfits", by_depth(0.10, 0.08, 0.08), "not held"),
    ("the deepest overfits", by_depth(0.10, 0.09, 0.08), "not held"),
    ("stochastic depth improves the test error", lambda d, s, seed: 0.08 if s < 1 else 0.09, "held"),
    ("stochastic depth improves the test error", lambda d, s, seed: 0.08, "not held"),
    ("stochastic depth improves the test error", lambda d, s, seed: overlapping(402, s, seed) if s < 1 else 0.09,
     "not held"),
    ("stochastic depth improves the test error", lambda d, s, seed: 0.10 if s < 1 else 0.09, "not held"),
    ("with stochastic depth more layers pay", by_depth(0.10, 0.09, 0.08, 0.5), "held"),
    ("with stochastic depth more layers pay", by_depth(0.10, 0.08, 0.09, 0.5), "not held"),
    ("with stochastic depth more layers pay", by_depth(0.10, 0.09, 0.08, 1.0), "not held"),
    ("stochastic depth costs no accuracy", lambda d, s, seed: 0.0999 if s < 1 else 0.09, "held"),
    ("stochastic depth costs no accuracy", lambda d, s, seed: 0.101 if s < 1 and d == 20 else 0.09, "not held"),
])  # fmt: skip
def test_r10_claims_about_test_errors(claim, test, status):
    assert outcome(claim, test)[0].status == status


@pytest.mark.parametrize(("error", "status"), [(0.0009, "held"), (0.0011, "not held")])
@pytest.mark.parametrize("depth", [20, 110, 402])
def test_r10_every_seed_fits_the_training_set(depth, error, status):
    found, _ = outcome("the deepest can be trained", train=lambda at, seed: error if (at, seed) == (depth, 3) else 0.0)
    assert found.status == status


@pytest.mark.parametrize(("share", "status"), [
    (lambda depth, error: SHARE[depth], "held"),
    (lambda depth, error: SHARE[depth] + 2.99 * error, "held"),
    (lambda depth, error: SHARE[depth] - 2.99 * error, "held"),
    (lambda depth, error: SHARE[depth] + 3.01 * error * (depth == 110), "not held"),
    (lambda depth, error: SHARE[depth] - 3.01 * error * (depth == 20), "not held"),
    (lambda depth, error: 0.86, "not held"),
])  # fmt: skip
def test_r10_what_is_saved_is_what_theory_says(share, status):
    def evaluations(depth):
        blocks, steps = depth // 2 - 1, STUDY.resolve("small")["steps"]
        alive = [1 - block / (2 * blocks) for block in range(1, blocks + 1)]
        return share(depth, (sum(p * (1 - p) for p in alive) / steps) ** 0.5 / blocks)

    assert outcome("stochastic depth saves a quarter", evaluations=evaluations)[0].status == status


def test_r10_draws_vary_by_the_standard_error():
    network = SignalNetwork("residual", 20, channels=1, num_classes=2, seeds=[0])
    shares = []
    for seed in range(40):
        random = RandomBlocks(network, linear_decay(9, 0.5), [seed])
        for _ in range(25):
            random(torch.zeros(2, 1, 6))
        shares.append(random.evaluations[0] / (9 * 25))
    _, results = outcome("the deepest overfits")
    error = very_deep._standard_error(9, results) * (STUDY.resolve("small")["steps"] / 25) ** 0.5
    assert stdev(shares) == pytest.approx(error, rel=0.25)
    assert fmean(shares) == pytest.approx(SHARE[20], abs=3 * error / 40**0.5)


def test_r10_figures_draw_every_seed():
    _, results = outcome("the deepest overfits")
    by_depth, curves = STUDY.figures(results)
    assert len(by_depth.series) == len(curves.series) == 6 * 5
    assert {s.group for s in by_depth.series} == {"all blocks", "stochastic depth"}


def test_r10_smoke_trains_both_arms():
    settings = STUDY.resolve("smoke")
    cells = list(STUDY.configurations(settings, range(2)))
    assert [(c.config["depth"], c.config["survival"]) for c in cells] == [
        (22, 0.5), (22, 1.0), (10, 0.5), (10, 1.0), (6, 0.5), (6, 1.0)
    ]  # fmt: skip
    for cell in cells[2:4]:
        first, second = STUDY.run(cell.config, cell.seeds)
        assert 0 < first["train_error"] <= 1
        assert first["curves"] != second["curves"], "seeds differ"
        assert (first["evaluations"] < 1) == (cell.config["survival"] < 1)
