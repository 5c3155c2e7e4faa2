from __future__ import annotations

import copy
import functools
import math

import pytest
import torch

from levada._errors import UsageError
from levada.studies import STUDIES, degradation, gradient_decay
from levada.study import Figure, Results
from levada.study.data import Dataset
from levada.study.language import random_windows
from levada.study.tagging import TaggingRecipe, supervised_tagger, train_tagger
from levada.study.treebank import Sentence, Vocabulary
from levada.theory import propagate_residual
from levada.theory.coherence import coherent_residual_gradient


def computed(study, scale="small", only=lambda config: True, **changes):
    settings = study.resolve(scale, changes)
    cells = [c for c in study.configurations(settings, range(settings["seeds"])) if only(c.config)]
    values = {}
    for cell in cells:
        for seed, value in zip(cell.seeds, study.run(cell.config, cell.seeds), strict=True):
            values[cell.key(seed)] = value
    return Results(cells, values), {claim.name: claim for claim in study.claims(settings)}


@pytest.fixture(scope="module")
def decay():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_decay, "mnist", functools.cache(gradient_decay.mnist))  # read once, not in every cell
        return computed(gradient_decay.STUDY)


def test_r1_gradient_decay_is_predicted_in_every_cell(decay):
    found, claims = decay
    outcome = claims["gradient decay is a law"].test(found)
    assert outcome.status == "held"
    numbers = outcome.numbers
    golden = {
        "plain sigmoid, 1/n": 2.6e-13, "plain sigmoid, PyTorch's default": 9.3e-18, "plain sigmoid, 16/n": 8.5e-5,
        "plain tanh, PyTorch's default": 1.2e-5, "plain tanh, 1/n": 0.19, "plain relu, 2/n": 0.95,
        "plain relu, PyTorch's default": 1.4e-8, "residual sigmoid, 1/n": 1.19, "residual tanh, 1/n": 8.4,
        "residual relu, 2/n": 6172, "residual relu, PyTorch's default": 8.5,
    }  # fmt: skip
    for name, value in golden.items():
        assert numbers[f"{name}: measured"] == pytest.approx(value, rel=0.05)
    assert numbers["largest deviation of a single seed, decades"] < 0.15


def test_r1_counter_examples(decay):
    found, claims = decay
    below = claims["below 0.25^n"].test(found)
    assert below.status == "not held"
    assert below.statistic.p == 0.0625
    for name in ("plain sigmoid, 1/n", "plain sigmoid, 16/n"):
        bounds = below.numbers[f"{name}: bound with the weights"]
        assert all(ratio < bound for ratio, bound in zip(below.numbers[name], bounds, strict=True))
    assert claims["tanh like sigmoid"].test(found).status == "not held"
    assert claims["residual networks explode"].test(found).status == "held"


def test_r1_a_wrong_law_does_not_hold(decay):
    found, claims = decay
    values = copy.deepcopy(dict(found.values))
    spoilt = next(c for c in found.cells if c.config["connection"] == "residual" and c.config["weight_variance"] == 2.0)
    for seed in spoilt.seeds:  # the prediction that forgets the coherent part
        values[spoilt.key(seed)]["predicted"][0] = 2.0**10
    assert claims["gradient decay is a law"].test(Results(found.cells, values)).status == "not held"


def test_r1_figures(decay):
    found, _ = decay
    by_depth, scatter = gradient_decay.STUDY.figures(found)
    measured = [s for s in by_depth.series if s.style == "measured"]
    assert len(measured) == 11 * 5
    assert all(len(s.x) == len(s.y) == 21 and s.y[-1] == 1.0 for s in measured)
    (bound,) = [s for s in by_depth.series if s.style == "bound"]
    assert bound.y[0] == pytest.approx(9.0949e-13, rel=1e-4)
    assert len(scatter.series) == 11 * 5 + 1


def test_without_alignment_or_mean_the_coherent_theory_is_mean_field():
    for activation, variance in (("tanh", 1.0), ("relu", 2.0)):
        known = propagate_residual(activation, variance, 0.0, 12, q0=0.9, activation_first=False)
        found = coherent_residual_gradient(activation, variance, 0.0, 12, q0=0.9)
        assert found.tolist() == pytest.approx(known.cumulative.tolist(), rel=1e-9)


@pytest.mark.parametrize(("activation", "bias"), [("relu", 0.0), ("relu", 0.3), ("sigmoid", 0.3)])
def test_the_coherent_theory_is_what_a_wide_network_shows(activation, bias):
    dim, depth, alignment = 1200, 8, 0.5
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states = [(normal(dim) + 0.5).requires_grad_()]
    for _ in range(depth):
        z = normal(dim, dim) @ states[-1] * (2 / dim) ** 0.5 + bias**0.5 * normal(dim)
        states.append(states[-1] + getattr(torch, activation)(z))
    along, noise = states[-1].detach(), normal(dim)
    across = noise - along * (noise @ along) / (along @ along)
    top = alignment**0.5 * along / along.norm() + (1 - alignment) ** 0.5 * across / across.norm()
    gradients = torch.autograd.grad(states[-1], states, top)
    square, mean = states[0].detach().square().mean().item(), states[0].detach().mean().item()
    found = coherent_residual_gradient(activation, 2.0, bias, depth, square, mean, alignment)
    assert [g.norm().item() for g in gradients] == pytest.approx(found.tolist(), rel=0.06)


def test_the_coherent_theory_conserves_state_times_gradient():
    # relu is homogeneous, so h.g is the same at every boundary: |g_l| >= |h_L| / |h_l| for a gradient along it.
    depth, q = 30, propagate_residual("relu", 2.0, 0.0, 30, activation_first=False).q
    found = coherent_residual_gradient("relu", 2.0, 0.0, depth, alignment=1.0)
    assert bool((found >= (q[-1] / q).sqrt() * (1 - 1e-9)).all())
    with pytest.raises(UsageError, match="alignment is a share"):
        coherent_residual_gradient("relu", 2.0, 0.0, depth, alignment=1.1)


def test_r4_gradients_explode_before_training():
    # Half of the usual batch: the mean over positions makes up for it.
    found, claims = computed(degradation.STUDY, only=lambda config: config["measures"] == "gradient", batch_size=32)
    outcome = claims["gradients do not vanish"].test(found)
    assert outcome.status == "held"
    assert all(7e7 < ratio < 6e8 for ratio in outcome.numbers["plain-110, gradient first/last"])
    assert outcome.numbers["factor per plain layer, predicted"] == pytest.approx(math.sqrt(math.pi / (math.pi - 1)))
    values = {key: {"gradient": [1.0] * len(v["gradient"])} for key, v in found.values.items()}
    spoilt = claims["gradients do not vanish"].test(Results(found.cells, values))
    assert spoilt.status == "not held"
    assert (outcome.statistic.value, outcome.statistic.p) == (5, 0.0625)
    assert (spoilt.statistic.value, spoilt.statistic.p) == (0, 0.0625)
    (_, profiles) = degradation.STUDY.figures(found)
    assert len(profiles.series) == 6 * 6
    assert claims["plain networks degrade"].test(found).status == "not decided"


def made_up(study, claim, value, scale="small"):
    """What a claim says of results that `value` makes from a configuration and a seed."""
    settings = study.resolve(scale)
    cells = study.configurations(settings, range(5))
    values = {cell.key(seed): value(cell.config, seed) for cell in cells for seed in cell.seeds}
    (tested,) = [c for c in study.claims(settings) if c.name == claim]
    return tested.test(Results(cells, values))


@pytest.mark.parametrize(("decades", "status"), [(0.149, "held"), (-0.149, "held"), (0.151, "not held"),
                                                 (-0.151, "not held")])  # fmt: skip
def test_r1_the_law_may_err_by_015_decades_on_average_in_every_cell(decades, status):
    def value(config, seed):
        first = config["connection"] == "plain" and config["weight_variance"] == 16.0
        away = decades + 0.3 * (seed - 2) if first else 0.0  # single seeds may be further off
        return {"gradient": [1e-3 * 10**away, 1.0], "predicted": [1e-3, 1.0]}

    outcome = made_up(gradient_decay.STUDY, "gradient decay is a law", value)
    assert outcome.status == status
    assert outcome.numbers["largest deviation of a cell, decades"] == pytest.approx(abs(decades))
    assert outcome.numbers["largest deviation of a single seed, decades"] == pytest.approx(abs(decades) + 0.6)


@pytest.mark.parametrize(("claim", "activation"), [("below 0.25^n", "sigmoid"), ("tanh like sigmoid", "tanh")])
@pytest.mark.parametrize(("ratio", "status", "above"), [(0.25**20 * 0.999, "held", 0), (0.25**20, "not held", 1)])
def test_r1_one_seed_decides_on_025_to_the_depth(claim, activation, ratio, status, above):
    def value(config, seed):
        chosen = config["activation"] == activation and config["connection"] == "plain" and seed == 3
        return {"gradient": [ratio if chosen else 1e-20, 1.0], "product_of_norms": 1.0}

    outcome = made_up(gradient_decay.STUDY, claim, value)
    assert outcome.status == status
    assert outcome.statistic.value == above


@pytest.mark.parametrize(("ratio", "status"), [(1024.0, "held"), (1023.9, "not held")])
def test_r1_residual_networks_explode_in_every_seed(ratio, status):
    outcome = made_up(
        gradient_decay.STUDY, "residual networks explode", lambda _, seed: {"gradient": [ratio if seed else 9e9, 1.0]}
    )
    assert outcome.status == status


@pytest.mark.parametrize(("kind", "depth"), [("plain", 20), ("plain", 110), ("residual", 56)])
@pytest.mark.parametrize(("beyond", "status", "agreeing"), [(False, "held", 5), (True, "not held", 4)])
@pytest.mark.parametrize("sign", [1, -1])
def test_r4_gradients_may_err_by_004_per_layer_in_every_seed(kind, depth, beyond, status, agreeing, sign):
    gain = math.sqrt(math.pi / (math.pi - 1))
    away = sign * (0.041 if beyond else 0.039)
    bound = 2 * depth * (1.001 if beyond else 0.999)

    def value(config, seed):
        layers = config["depth"] - 2
        if config["kind"] == "residual":
            spoilt = (kind, depth) == ("residual", config["depth"]) and seed == 2
            return {"gradient": [bound if spoilt else 1.0, 1.0]}
        spoilt = (kind, depth) == ("plain", config["depth"]) and seed == 2
        return {"gradient": [(gain + away * spoilt) ** layers, 1.0]}

    outcome = made_up(degradation.STUDY, "gradients do not vanish", value)
    assert outcome.status == status
    assert outcome.statistic.value == agreeing


def synthetic(errors):
    return lambda config, seed: {
        "train_error": errors.get((config["kind"], config["depth"]), [0.0] * 5)[seed],
        "gradient": [1.0, 1.0],
    }


@pytest.mark.parametrize(("last", "status"), [(0.201, "held"), (0.2, "not held")])
@pytest.mark.parametrize(("claim", "scale"), [("plain networks degrade", "small"),
                                              ("longer training does not help", "full")])  # fmt: skip
def test_r4_degradation_is_claimed_in_every_seed(claim, scale, last, status):
    errors = {("plain", 20): [0.2] * 5, ("plain", 56): [0.7, 0.6, 0.8, 0.65, last]}
    outcome = made_up(degradation.STUDY, claim, synthetic(errors), scale)
    assert outcome.status == status
    assert outcome.numbers["plain-56, training error %"][0] == pytest.approx(70)


@pytest.mark.parametrize(("deep", "status"), [(0.0299, "held"), (0.0301, "not held")])
def test_r4_residual_networks_may_lose_one_point(deep, status):
    # The mean decides: one seed may lose more.
    errors = {("residual", 20): [0.02] * 5, ("residual", 110): [deep + 0.01, deep - 0.01, deep, deep, deep]}
    assert made_up(degradation.STUDY, "residual networks do not", synthetic(errors)).status == status


def test_r4_trains_and_selects(monkeypatch):
    whole = degradation.mnist1d()
    few = (whole.train_inputs[:300], whole.train_targets[:300], whole.test_inputs[:100], whole.test_targets[:100])
    monkeypatch.setattr(degradation, "mnist1d", lambda: Dataset("few signals", *few))
    monkeypatch.setattr(degradation, "NUM_FITTED", 200)
    changes = {"steps": 3, "seeds": 2, "select": True, "lr_grid": (0.001, 0.1)}
    only = {"measures": "training", "kind": "residual", "depth": 20}
    found, claims = computed(degradation.STUDY, only=lambda c: all(c.get(k) == v for k, v in only.items()), **changes)
    ((_, values), _) = found.where()
    assert set(values["validation_error"]) == {"0.001", "0.1"}
    assert values["lr"] == min((0.001, 0.1), key=lambda lr: values["validation_error"][str(lr)])
    assert 0 < values["train_error"] <= 1
    assert claims["residual networks do not"].test(found).status == "not decided"


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_without_results_nothing_is_decided_and_nothing_breaks(study):
    settings = study.resolve("full")
    found = Results(list(study.configurations(settings, range(5))), {})
    assert {claim.test(found).status for claim in study.claims(settings)} == {"not decided"}
    assert not any(
        s.style == "measured" for drawn in study.figures(found) if isinstance(drawn, Figure) for s in drawn.series
    )


def test_r4_full_has_the_longer_arm():
    study = degradation.STUDY
    settings = study.resolve("full")
    assert "longer training does not help" in {claim.name for claim in study.claims(settings)}
    configs = [cell.config for cell in study.configurations(settings, range(2))]
    trained = {(c["kind"], c["depth"], c["budget"]) for c in configs if c["measures"] == "training"}
    assert len(trained) == 14
    assert ("plain pre-activation", 56, 3) in trained


def _larger(text):
    return random_windows(text, 3, 7, torch.Generator())


def _more_sentences(_):
    one = Sentence(("Evde", "kedi"), ("NOUN", "NOUN"), ("NN", "NN"), ("root", "nsubj"))
    vocabulary = Vocabulary([one] * 4)
    tagger = supervised_tagger(vocabulary, 4, None, seed=0)
    return train_tagger(tagger, vocabulary, [one] * 4, TaggingRecipe(1, 7, 0.1), seed=0)


def _more_digits(_):
    config = {"dim": 2, "batch_size": 7, "cell": 0}
    return gradient_decay._measure(config, 0, Dataset("digits", *[torch.zeros(4, 2), torch.zeros(4).long()] * 2))


@pytest.mark.parametrize("draw", [_larger, _more_sentences, _more_digits])
def test_a_batch_larger_than_the_data_is_refused(draw):
    with pytest.raises(UsageError, match=r"must be at least 7, got 4\. Use a smaller batch\."):
        draw(torch.arange(6))


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_the_scale_smoke_has_the_claims_that_are_published(study):
    names = [[claim.name for claim in study.claims(study.resolve(scale))] for scale in ("smoke", "small")]
    assert names[0] == names[1]


@pytest.mark.parametrize("study", [one for one in STUDIES.values() if "data" in one.settings], ids=lambda s: s.name)
def test_data_that_a_study_does_not_read_are_refused(study):
    with pytest.raises(
        UsageError, match=f"study {study.name}: data must be one of mnist.*, got 'cifar-10'. Did you me"
    ):
        study.resolve("smoke", {"data": "cifar-10"})
    for scale in ("smoke", "small", "full"):
        assert study.resolve(scale)["data"] in study.known["data"]
