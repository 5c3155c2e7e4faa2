from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from levada._errors import UsageError
from levada.connections import StochasticDepth
from levada.studies import lesions as study_module
from levada.studies import lesions_claims
from levada.studies.lesions_claims import exact_shares, predicted_shares
from levada.study import Results
from levada.study.lesions import (
    RandomBlocks,
    WeightedBlocks,
    disorder,
    lesion_errors,
    linear_decay,
    some_blocks,
    survival_by_block,
    without,
)
from levada.study.path_gradients import additive_shares, number_times_norm, single_path_norms, summed_path_norms
from levada.study.replicas import SignalNetwork, signal_layout
from levada.study.training import Recipe, measure_statistics, train
from levada.theory import path_lengths

STUDY = study_module.STUDY
INPUTS = torch.randn(48, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.arange(48) % 3


def network(seeds, depth=10, kind="residual"):
    """Four blocks, or eight plain layers, with weights and statistics that are not those of the start."""
    net = SignalNetwork(kind, depth, channels=4, num_classes=3, seeds=seeds).double()
    train(net, INPUTS, TARGETS, Recipe(3, 16, 0.1), seeds)
    measure_statistics(net, INPUTS, len(seeds))
    return net.eval()


def by_hand(net, order, x):
    state = net.first(signal_layout(x))
    for block in order:
        out = net.stack[block].branch(state)
        state = state + out if type(net.stack[block].connection).__name__ == "Residual" else out
    return net.classify(state)


def test_a_draw_of_more_damage_holds_that_of_less(monkeypatch):
    """What follows a larger number is the damage that is new, not other blocks."""
    seen = []
    monkeypatch.setattr(
        study_module, "lesion_errors", lambda *given: (seen.append(given[-1]), torch.zeros(len(given[-1]), 1))[1]
    )
    network, data = SimpleNamespace(stack=range(54)), SimpleNamespace(test_inputs=None, test_targets=None)
    found = study_module._many_lesions(network, data, 3)
    orders = seen[0]
    numbers = found["deleted_number"][0].tolist()
    deleted = [[set(range(54)) - set(orders[3 * i + draw]) for i in range(len(numbers))] for draw in range(3)]
    assert [[len(one) for one in draw] for draw in deleted] == [numbers] * 3
    assert all(a < b for draw in deleted for a, b in itertools.pairwise(draw))
    assert len({frozenset(draw[-1]) for draw in deleted}) == 3
    swapped = orders[3 * len(numbers) :]
    for few, more in zip(swapped, swapped[3:], strict=False):
        assert sorted(few) == sorted(more) == list(range(54))
    assert sum(a != b for a, b in zip(swapped[0], swapped[3], strict=True)) in (2, 3), "one pair more is swapped"


@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_a_lesion_removes_exactly_its_blocks_and_runs_the_others_in_order(kind):
    net = network([0, 1], kind=kind)
    orders = [[0, 1, 2, 3], [0, 1, 2], [1, 2, 3], [0, 3], [3, 1, 2, 0], [0, 2, 1, 3], []]
    if kind == "plain":
        orders = [[*order, 4, 5, 6, 7] for order in orders]
    x = INPUTS.unsqueeze(1).expand(-1, 2, -1)
    wanted = torch.stack([(by_hand(net, o, x).argmax(-1) != TARGETS[:, None]).double().mean(0) for o in orders])
    found = lesion_errors(net, INPUTS, TARGETS, orders, chunk=20)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert len({tuple(row) for row in found.tolist()}) > 2, "lesions that change nothing would prove nothing"
    with pytest.raises(UsageError, match="blocks 0 to"):
        lesion_errors(net, INPUTS, TARGETS, [[0, 8]])


def test_a_lesioned_replica_is_the_lesioned_network_alone():
    # With both trained alike, as test_training holds, neither knows of the other.
    lesions = [without(4, [block]) for block in range(4)]
    together = lesion_errors(network([3, 4]), INPUTS, TARGETS, lesions)
    assert torch.equal(together[:, 1:], lesion_errors(network([4]), INPUTS, TARGETS, lesions))


def test_without_and_disorder():
    assert without(4, range(4)) == []
    assert disorder([1, 0, 2]) == pytest.approx(1 / 3)
    assert disorder([2, 0, 1]) == pytest.approx(2 / 3)
    assert study_module._swapped(4, [(0, 3), (3, 1)]) == [3, 0, 2, 1]


@pytest.mark.parametrize("draw", [some_blocks(4, 2), linear_decay(4, 0.5)])
def test_replicas_with_random_blocks_train_as_they_would_alone(draw):
    def trained(seeds):
        net = SignalNetwork("residual", 10, channels=4, num_classes=3, seeds=seeds).double()
        random = RandomBlocks(net, draw, seeds)
        train(random, INPUTS, TARGETS, Recipe(5, 16, 0.1), seeds)
        return net, random

    together, counted = trained([7, 8])
    alone, counted_alone = trained([8])
    for weight, own in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(weight.flatten().chunk(2)[1], own.flatten(), rtol=0, atol=1e-9)
    assert counted.evaluations[1] == counted_alone.evaluations[0]
    assert counted.passes == 5


def test_random_blocks_are_the_blocks_of_the_draw_and_the_others_get_no_gradient():
    net = network([0, 1]).train()
    masks = iter([torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])])
    random = RandomBlocks(net, lambda generator: next(masks), [0, 1])
    x = INPUTS[:, None].expand(-1, 2, -1)
    found = random(x)
    assert torch.allclose(found[:, 0], by_hand(net, [0, 2], x)[:, 0], atol=1e-12)
    assert torch.allclose(found[:, 1], by_hand(net, [1, 2, 3], x)[:, 1], atol=1e-12)
    assert random.evaluations == [2, 3]
    net.zero_grad()
    found.square().sum().backward()
    norms = [layer.branch[2].weight.grad.flatten(1).norm(dim=1).view(2, -1).sum(1) for layer in net.stack]
    assert [[norm > 0 for norm in row.tolist()] for row in norms] == [[1, 0], [0, 1], [1, 1], [0, 1]]


def test_weighted_blocks_weight_the_branches():
    net = network([0])
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0])
    state = net.first(signal_layout(INPUTS[:, None]))
    for layer, weight in zip(net.stack, weights, strict=True):
        state = state + weight * layer.branch(state)
    assert torch.allclose(WeightedBlocks(net, weights)(INPUTS[:, None]), net.classify(state), atol=1e-12)
    with pytest.raises(UsageError, match="one for each of 4 blocks"):
        WeightedBlocks(net, weights[:3])
    with pytest.raises(UsageError, match="must be a residual one"):
        WeightedBlocks(network([0], kind="plain"), torch.ones(8))


def test_stochastic_depth_is_the_connections():
    wanted = [StochasticDepth(4, layer=layer, depth=54, survival=0.5).survival for layer in range(54)]
    assert survival_by_block(54, 0.5).tolist() == pytest.approx(wanted)
    generator, draw = torch.Generator().manual_seed(0), linear_decay(54, 0.5)
    shares = torch.stack([draw(generator) for _ in range(2000)]).mean(0)
    assert shares.tolist() == pytest.approx(wanted, abs=0.05)
    for bad in (0.0, 1.1):
        with pytest.raises(UsageError, match="survival must be in"):
            survival_by_block(3, bad)


def test_some_blocks_takes_each_as_often():
    generator, draw = torch.Generator().manual_seed(0), some_blocks(6, 2)
    draws = torch.stack([draw(generator) for _ in range(3000)])
    assert set(draws.sum(1).tolist()) == {2.0}
    assert draws.mean(0).tolist() == pytest.approx([1 / 3] * 6, abs=0.03)
    for bad in (0, 7):
        with pytest.raises(UsageError, match="num_alive must be between 1 and 6"):
            some_blocks(6, bad)


def paths_by_hand(net, example):
    """Gradient of one example through every set of branches, by autograd: set -> gradient."""
    x, target = INPUTS[example : example + 1, None], TARGETS[example : example + 1]
    states = [net.first(signal_layout(x)).detach().requires_grad_()]
    jacobians = []
    for layer in net.stack:
        state = states[-1].detach().requires_grad_()
        out = layer.branch(state)
        rows = [torch.autograd.grad(out.flatten()[i], state, retain_graph=True)[0].flatten() for i in range(80)]
        jacobians.append(torch.stack(rows))
        states.append(states[-1] + layer.branch(states[-1]))
    loss = functional.cross_entropy(net.classify(states[-1])[:, 0], target)
    top, whole = (g.flatten() for g in torch.autograd.grad(loss, [states[-1], states[0]]))
    found = {}
    for taken in itertools.product((False, True), repeat=len(jacobians)):
        gradient = top
        for jacobian, through in zip(reversed(jacobians), reversed(taken), strict=True):
            gradient = gradient @ jacobian if through else gradient
        found[taken] = gradient
    return found, whole


def test_path_gradients_are_those_of_every_path():
    net = network([5], depth=8)
    examples = range(2)
    hands = [paths_by_hand(net, example) for example in examples]
    for paths, whole in hands:
        torch.testing.assert_close(sum(paths.values()), whole)
    wanted = [
        [torch.stack([g for taken, g in paths.items() if sum(taken) == k]).sum(0).norm().item() for k in range(4)]
        for paths, _ in hands
    ]
    together = summed_path_norms(net, INPUTS[:2], TARGETS[:2])
    assert together.shape == (2, 4, 1)
    for row, own in zip(together[:, :, 0].tolist(), wanted, strict=True):
        assert row == pytest.approx(own, rel=1e-9)
    single = single_path_norms(net, INPUTS[:2], TARGETS[:2], [0, 3], paths=2)
    assert single.shape == (2, 2, 2, 1)
    for own, taken in zip(single[..., 0], [(False,) * 3, (True,) * 3], strict=True):
        for draw in own.tolist():
            assert draw == pytest.approx([paths[taken].norm().item() for paths, _ in hands], rel=1e-9)
    # Of one branch there are three paths, which are drawn equally often.
    many = single_path_norms(net, INPUTS[:2], TARGETS[:2], [1], paths=300)[0, :, :, 0]
    for example, (paths, _) in enumerate(hands):
        ones = sorted(g.norm().item() for taken, g in paths.items() if sum(taken) == 1)
        nearest = (many[:, example, None] - torch.tensor(ones, dtype=torch.float64)).abs().min(1)
        assert nearest.values.max() < 1e-9 * ones[0]
        assert nearest.indices.bincount().tolist() == pytest.approx([100] * 3, abs=40)


def test_additive_shares_are_projections_of_every_path_and_sum_to_one():
    net = network([5], depth=8)
    found = additive_shares(net, INPUTS[:2], TARGETS[:2])
    assert found.shape == (2, 4, 1)
    assert found.sum(1).flatten().tolist() == pytest.approx([1, 1], rel=1e-12)
    for example in range(2):
        paths, whole = paths_by_hand(net, example)
        for length in range(4):
            part = sum(g for taken, g in paths.items() if sum(taken) == length)
            wanted = (part @ whole / whole.square().sum()).item()
            assert found[example, length, 0].item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_path_gradients_of_a_replica_are_those_of_the_network_alone():
    both, alone = network([1, 2]), network([2])
    for measure in (summed_path_norms, additive_shares, lambda *given: single_path_norms(*given, [0, 2, 4], paths=2)):
        torch.testing.assert_close(
            measure(both, INPUTS[:4], TARGETS[:4])[..., 1:], measure(alone, INPUTS[:4], TARGETS[:4])
        )
    with pytest.raises(UsageError, match="examples see each other"):
        summed_path_norms(alone.train(), INPUTS, TARGETS)
    with pytest.raises(UsageError, match="lengths must be between 0 and 4"):
        single_path_norms(alone.eval(), INPUTS, TARGETS, [5])


def test_number_times_norm_counts_paths():
    assert number_times_norm([1.0] * 55) == pytest.approx(path_lengths([1.0] * 54).weights.tolist())
    shares = number_times_norm([0.5**k for k in range(21)])  # of independent gains: a binomial of p = 1/3
    assert shares[4] == pytest.approx(math.comb(20, 4) * (1 / 3) ** 4 * (2 / 3) ** 16)
    assert sum(predicted_shares(54)) == pytest.approx(1)
    assert exact_shares([2.0, 2.0, 4.0]) == [0.25, 0.25, 0.5]


# What the claims say of made-up results. Each is met by `GOOD`, and no longer by what a case changes.
GOOD = {
    "test_error": 0.02, "train_error": 0.0, "unweighted test_error": 0.0, "single": [0.9] + [0.03] * 9,
    "deleted_number": [1, 2, 5, 10, 15], "deleted": [[0.1], [0.2], [0.4], [0.6], [0.8]], "swaps": [1, 2, 4, 8, 16],
    "disorder": [[0.01], [0.02], [0.1], [0.2], [0.4]], "swapped": [[0.1], [0.2], [0.4], [0.6], [0.8]],
    "single_path": [10.0 ** (-0.75 * k) for k in range(55)], "single_path_noise": [0.0] * 55,
    "single_path_squared": [share / math.comb(54, k) for k, share in enumerate(predicted_shares(54))],
    "additive": predicted_shares(54),
    "together": number_times_norm([10.0 ** (-0.75 * k) for k in range(55)]), "together_squared": predicted_shares(54),
    "curves": {"steps": [1.0], "loss": [1.0], "error": [0.5]},
}  # fmt: skip


def outcome(claim, change):
    settings = STUDY.resolve("small")
    cells = list(STUDY.configurations(settings, range(5)))
    values = {c.key(s): {**GOOD, **change(c.config, s)} for c in cells for s in c.seeds}
    (tested,) = [c for c in STUDY.claims(settings) if c.name == claim]
    return tested.test(Results(cells, values)), Results(cells, values)


def plain(single):
    return lambda config, seed: {"single": single if config.get("kind") == "plain" and seed == 3 else [0.8] * 18}


def one_seed(**changed):
    return lambda config, seed: changed if seed == 3 else {}


def shallow(config, seed):
    return {"single": [0.05] * 9} if config["depth"] == 20 and seed == 3 else {}


def squares(measures, length, factor):
    def change(config, seed):
        if config["measures"] != measures or seed != 3:
            return {}
        found = predicted_shares(54)
        return {"together_squared": [factor * s if k == length else s for k, s in enumerate(found)]}

    return change


CASES = {
    "most blocks can go": [
        (one_seed(), "held"),
        (one_seed(single=[0.04] * 6 + [0.05] * 4), "held"),
        (one_seed(single=[0.041] * 10), "not held"),
        (one_seed(single=[0.03] * 7 + [0.13] * 3), "not held"),
    ],
    "a plain network needs each layer": [
        (plain([0.52] * 18), "held"),
        (plain([0.51] * 10 + [0.9] * 8), "not held"),
    ],
    "at any depth": [(one_seed(), "held"), (shallow, "not held")],
    "errors rise smoothly with deletions": [
        (one_seed(), "held"),
        (one_seed(deleted=[[0.1], [0.2], [0.41], [0.61], [0.6]]), "held"),
        (one_seed(deleted=[[0.1], [0.2], [0.41], [0.64], [0.6]]), "not held"),
        (one_seed(deleted=[[0.25], [0.3], [0.4], [0.5], [0.6]]), "not held"),
        (one_seed(deleted=[[0.1], [0.4], [0.2], [0.8], [0.6]]), "not held"),
        (one_seed(deleted=[[0.235], [0.45], [0.5], [0.6], [0.8]]), "not held"),
    ],
    "errors rise smoothly with disorder": [
        (one_seed(), "held"),
        (one_seed(swapped=[[0.8], [0.2], [0.4], [0.6], [0.1]]), "not held"),
        (one_seed(swapped=[[0.235], [0.2, 0.71], [0.56], [0.6], [0.8]]), "not held"),
        (one_seed(swapped=[[0.1], [0.2], [0.3], [0.4], [0.7]]), "not held"),
    ],
    "paths lose the gradient exponentially": [
        (one_seed(), "held"),
        (one_seed(single_path=[10.0 ** (0.75 * k) for k in range(55)]), "not held"),
        (one_seed(single_path=[math.exp(math.cos(k)) for k in range(55)]), "not held"),
    ],
    "the gradient takes short paths": [
        (one_seed(), "held"),
        (one_seed(single_path=[1.0] * 55), "not held"),
        (one_seed(single_path=[10.0 ** (-0.4 * k) for k in range(55)]), "not held"),
    ],
    "norms of paths add": [
        (one_seed(), "held"),
        (one_seed(together=[1.0] * 9 + [0.0] * 46), "not held"),
        (one_seed(together=[0.0] * 11 + [1.0] + [0.0] * 43), "not held"),
    ],
    "squares of paths add": [
        (one_seed(), "held"),
        (squares("untrained", 1, 1.99), "held"),
        (squares("untrained", 1, 2.01), "not held"),
        (squares("lesions", 3, 0.49), "not held"),
        (squares("lesions", 4, 20.0), "held"),
    ],
    "effective depth has a closed form": [
        (one_seed(), "held"),
        (one_seed(together_squared=[0.0] * 7 + [1.0] + [0.0] * 47), "not held"),
        (one_seed(together_squared=[0.0] * 5 + [1.0] + [0.0] * 49), "not held"),
    ],
    "some blocks at a time suffice": [
        (lambda config, seed: {"test_error": 0.03} if config["measures"] == "half" else {}, "held"),
        (lambda config, seed: {"test_error": 0.0301} if config["measures"] == "half" and seed == 3 else {}, "not held"),
        (lambda config, seed: {"test_error": 0.0099} if config["measures"] == "half" and seed == 3 else {}, "not held"),
        (lambda config, seed: {"train_error": 0.05} if config["measures"] == "half" else {}, "held"),
        (lambda config, seed: {"train_error": 0.051} if config["measures"] == "half" else {}, "not decided"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "case"), [(claim, case) for claim, cases in CASES.items() for case in range(len(cases))]
)
def test_r7_claims_hold_and_do_not(claim, case):
    change, status = CASES[claim][case]
    found, _ = outcome(claim, change)
    assert found.status == status, found.reason


def test_r7_every_claim_is_tried_and_figures_draw_every_seed():
    assert set(CASES) == {claim.name for claim in STUDY.claims(STUDY.resolve("small"))}
    _, results = outcome("norms of paths add", one_seed())
    single, deleted, swapped, paths = STUDY.figures(results)
    assert sum(s.style == "measured" for s in single.series) == 3 * 5
    assert [sum(s.style == "measured" for s in figure.series) for figure in (deleted, swapped)] == [5, 5]
    assert deleted.series[0].x == [1, 2, 5, 10, 15]
    assert swapped.series[0].x == [0.01, 0.02, 0.1, 0.2, 0.4]
    assert sum(s.style == "measured" for s in paths.series) == 3 * 5
    (predicted,) = [s for s in paths.series if s.style == "predicted"]
    assert sum(predicted.y) == pytest.approx(1, abs=1e-4)


def test_r7_noise_of_paths_is_that_of_the_mean_length():
    # With norms a, b of paths of 0 and 1 of one branch the mean length is b / (a + b).
    assert lesions_claims._path_noise([2.0, 1.0], [0.0, 0.1]) == pytest.approx(0.1 * 2 / 9)
    assert lesions_claims._path_noise([2.0, 1.0], [0.1, 0.0]) == pytest.approx(0.1 / 9)


def test_r7_smoke_measures_every_kind_of_cell():
    settings = STUDY.resolve("smoke")
    measured = {}
    for cell in STUDY.configurations(settings, range(2)):
        first, second = STUDY.run(cell.config, cell.seeds)
        measured[cell.config["measures"], cell.config.get("kind"), cell.config["depth"]] = first
        assert first.keys() == second.keys()
    assert len(measured) == 5
    whole = measured["lesions", "residual", 14]
    assert len(whole["single"]) == 6
    assert len(whole["single_path"]) == len(whole["together"]) == 7
    assert whole["deleted_number"] == [1, 2, 4]
    assert len(whole["single_path_noise"]) == 7
    assert sum(whole["additive"]) == pytest.approx(1)
    # A path without a branch is the skip alone, whichever way it is measured.
    assert whole["single_path"][0] == pytest.approx(whole["together"][0], rel=1e-9)
    assert measured["half", None, 14].keys() == {
        "unweighted train_error", "unweighted test_error", "train_error", "test_error", "curves"
    }  # fmt: skip
