from __future__ import annotations

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.initialise import he
from levada.studies import find
from levada.studies import zero_initialisation as r8
from levada.studies.zero_initialisation_claims import ARMS
from levada.study import Results
from levada.study.deep_replicas import DeepReplicas, Design


@pytest.fixture(scope="module")
def smoke():
    settings = r8.STUDY.resolve("smoke")
    cells = r8.configurations(settings, range(settings["seeds"]))
    values = {}
    for cell in cells:
        for seed, value in zip(cell.seeds, r8.run(cell.config, cell.seeds), strict=True):
            values[cell.key(seed)] = value
    return Results(cells, values)


def test_it_runs_at_the_scale_smoke_and_decides_nothing(smoke):
    assert find("zero_initialisation") is r8.STUDY
    claims = r8.STUDY.claims({})
    assert {claim.test(smoke).status for claim in claims} == {"not decided"}
    released, own, gradients = r8.STUDY.figures(smoke)
    assert (len(released.series), len(own.series)) == (4 * 2 + 1, 5 * 2 + 1)
    assert len(gradients.series) == 5 * 2, "where it is always 0 there is no line"


def test_the_rate_of_each_is_chosen_on_other_seeds(smoke):
    for _, values in smoke.where(race="own"):
        assert set(values["selection"]) == {"0.01", "0.03"}
        assert values["lr"] == min((0.01, 0.03), key=lambda lr: sum(values["selection"][str(lr)]))
        assert len(values["selection"]["0.01"]) == 2
    assert set(smoke.column("lr", race="released")) == {0.01}


@pytest.mark.parametrize(("arm", "variance"), [("plain", 2), ("residual", 0.25), ("shared norm", 2), ("ReZero", 2)])
def test_the_released_race_has_the_notebook_s_networks(arm, variance):
    config = {"race": "released", "arm": arm, "depth": 3, "dim": 200}
    network = DeepReplicas(r8._design(config, 100), [0, 7])
    x = torch.randn(5, 2, 100, generator=torch.Generator().manual_seed(1))
    dense = [layer.branch[0] if arm == "shared norm" else layer.branch for layer in network.stack]
    assert dense[0].weight.var().item() == pytest.approx(variance / 200, rel=0.03)
    assert network.first.weight.var().item() == pytest.approx(2 / 100, rel=0.03)
    assert network.last.weight.abs().max().item() == pytest.approx(200**-0.5, rel=0.01)
    for own in (network.first, *dense, network.last):
        bound = own.weight.shape[1] ** -0.5
        assert 0.8 * bound < own.bias.abs().max().item() <= bound
    for layer in network.stack if arm == "ReZero" else ():
        nn.init.constant_(layer.connection.scale, 0.5)
    if arm == "shared norm":
        assert len({id(layer.branch[1]) for layer in network.stack}) == 1
        norm = network.stack[0].branch[1]
        nn.init.constant_(norm.weight[1], 3.0)
        nn.init.constant_(norm.bias[1], 0.5)
    state = (x[:, 1] @ network.first.weight[1] + network.first.bias[1]).relu()
    for own in dense:
        out = (state @ own.weight[1] + own.bias[1]).relu()
        if arm == "shared norm":
            out = 3 * nn.functional.layer_norm(out, (200,)) + 0.5
        state = {"residual": state + out, "ReZero": state + 0.5 * out}.get(arm, out)
    logits = state @ network.last.weight[1] + network.last.bias[1]
    torch.testing.assert_close(network(x)[:, 1], logits, rtol=1e-4, atol=1e-4)


def test_the_released_race_counts_the_mean_loss_of_the_last_epoch():
    config = {"race": "released", "arm": "plain", "depth": 2, "dim": 8, "batch_size": 10, "epochs": 3, "lr": 0.01}
    inputs, targets = torch.randn(40, 6), torch.arange(40) % 10
    ((values),) = r8._race(config, [3], inputs, targets)
    assert values["curve"]["steps"][-1] == 12
    assert values["loss"] == pytest.approx(sum(values["curve"]["values"][-4:]) / 4)


def test_all_zero_blocks_have_no_gradient_but_with_a_sigmoid(smoke):
    for activation, expected in (("ReLU", 0), ("tanh", 0), ("sigmoid", 4)):
        found = smoke.column("steps_with_gradient", start="all zero", activation=activation)
        assert found == [expected] * 6
        moved = smoke.column("largest_move", start="all zero", activation=activation)
        assert all(m == 0 for m in moved) if not expected else all(m > 0 for m in moved)
    assert min(smoke.column("least_bias", start="all zero")) > 0
    assert min(smoke.column("least_move", start="last zero") + smoke.column("least_move", start="factor zero")) > 0


def test_the_gradient_is_watched_at_every_step(smoke):
    for start in ("last zero", "factor zero"):
        first = [values["gradient"]["values"][0] for _, values in smoke.where(start=start)]
        # With a factor of zero before each block no weight of it has a gradient at the first step; then it has.
        assert all(g == 0 for g in first) if start == "factor zero" else all(g > 0 for g in first)
        assert smoke.column("steps_with_gradient", start=start) == [3 if start == "factor zero" else 4] * 4


def test_a_block_of_zeros(smoke):
    def column(name, after, given, shortcut="identity"):
        return smoke.column(name, after=after, input=given, shortcut=shortcut)

    assert column("changed", "", "any") == [0.0, 0.0]
    assert column("changed", "ReLU", "of a ReLU") == [0.0, 0.0], "inside a network of 2015 ReLU(x) is x"
    assert all(0.4 < share < 0.6 for share in column("changed", "ReLU", "any"))
    assert all(0.7 < share < 1 for share in column("changed", "ReLU", "of a ReLU", "projection"))
    assert column("rectified", "ReLU", "any") == [True, True]
    assert column("rectified", "", "any") == [False, False]


@pytest.mark.parametrize("arm", [*ARMS, "shared norm"])
def test_the_jacobian_is_that_of_the_whole_stack(arm):
    network = DeepReplicas(Design(arm, 3, 5, inputs=4, outputs=2, draw=he), [0, 7])
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    square, identity = r8._jacobian(network, inputs, [0, 7])
    for replica, seed in enumerate((0, 7)):
        generator = torch.Generator().manual_seed(seed)
        chosen = int(torch.randperm(20, generator=generator)[0])
        state = network.begin(inputs[chosen].expand(1, 2, 4)).detach()

        def through(own, state=state, replica=replica):
            whole = state.clone()
            whole[replica, 0] = own
            return network.stack(whole)[replica, 0]

        jacobian = torch.autograd.functional.jacobian(through, state[replica, 0])
        assert square[replica].item() == pytest.approx(jacobian.square().sum().item() / 5, rel=1e-4)
        assert bool(identity[replica]) == torch.equal(jacobian, torch.eye(5)) == (arm == "ReZero")
    if arm == "ReZero":  # nearly the identity is not the identity
        for layer in network.stack:  # in some layer some unit is at work
            nn.init.constant_(layer.connection.scale, 1e-3)
        assert not r8._jacobian(network, inputs, [0, 7])[1].any()


def test_data_is_standardised_and_cifar_needs_its_folder(tmp_path):
    inputs, targets = r8._examples({"data": "mnist1d"}, "cpu")
    assert inputs.shape == (4000, 40)
    assert len(targets) == 4000
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match=r"lacks data_batch_1\.bin"):
        r8._examples({"data": "cifar10", "folder": str(tmp_path)}, "cpu")


def decided(claim, value):
    settings = r8.STUDY.resolve("small")
    cells = r8.configurations(settings, range(5))
    values = {cell.key(seed): value(cell.config, seed) for cell in cells for seed in cell.seeds}
    (found,) = [c for c in r8.STUDY.claims(settings) if c.name == claim]
    return found.test(Results(cells, values))


@pytest.mark.parametrize("block", [None, *r8.ZERO_BLOCKS])
def test_a_block_of_zeros_must_return_its_input_in_every_seed(block):
    def value(config, seed):
        here = (config.get("after"), config.get("input"), config.get("shortcut")) == block
        return {"changed": 0.01 if seed == 2 and here else 0.0, "rectified": False}

    assert decided("a block of zeros is the identity", value).status == ("not held" if block else "held")


@pytest.mark.parametrize(
    ("claim", "activation"), [("all zero is a saddle", "tanh"), ("whatever the activation", "sigmoid")]
)
@pytest.mark.parametrize(
    ("spoilt", "status"),
    [({}, "held"), ({"steps_with_gradient": 1}, "not held"), ({"largest_move": 1e-9}, "not held"),
     ({"least_bias": 0.0}, "not held")],
)  # fmt: skip
def test_one_step_with_a_gradient_is_no_saddle(claim, activation, spoilt, status):
    def value(config, seed):
        here = seed == 3 and config.get("activation") == activation and config.get("optimizer") == "Adam"
        return {"steps_with_gradient": 0, "largest_move": 0.0, "least_bias": 0.1, **(spoilt if here else {})}

    assert decided(claim, value).status == status


@pytest.mark.parametrize("start", ["last zero", "factor zero"])
@pytest.mark.parametrize(("loss", "move", "status"), [(1.5, 1e-3, "held"), (1.501, 1e-3, "not held"),
                                                      (1.5, 0.0, "not held")])  # fmt: skip
def test_zero_in_one_place_must_train(start, loss, move, status):
    def value(config, seed):
        here = config.get("start") == start and seed == 1 and config["activation"] == "tanh"
        return {"loss": loss if here else 2.0 if config.get("start") == "all zero" else 1.0,
                "least_move": move if here else 1e-3}  # fmt: skip

    assert decided("zero in one place trains", value).status == status


def test_the_jacobian_must_be_the_identity_in_every_seed():
    for last, status in ((True, "held"), (False, "not held")):
        outcome = decided(
            "the Jacobian is the identity",
            lambda config, seed, last=last: {
                "square": 1.0, "identity": config.get("arm") == "ReZero" and (seed < 4 or last)
            },
        )  # fmt: skip
        assert outcome.status == status


def losses(race, **changed):
    def value(config, seed):
        if config["measures"] != "race":
            return {}
        usual = 0.2 if config["arm"] == "ReZero" else 0.1 if config["arm"] == "pre-norm residual" else 2.0
        here = seed == 4 and config["race"] == race
        return {"loss": changed.get(config["arm"].replace(" ", "_"), usual) if here else usual, "lr": 0.01}

    return value


@pytest.mark.parametrize(
    ("changed", "status"),
    [({"ReZero": 0.5, "plain": 1.5}, "held"), ({"ReZero": 0.501}, "not held"), ({"plain": 1.499}, "not held"),
     ({"residual": 1.499}, "not held"), ({"shared_norm": 1.499}, "not held")],
)  # fmt: skip
def test_the_race_has_thresholds_in_every_seed(changed, status):
    assert decided("ReZero wins the race", losses("released", **changed)).status == status


def test_at_each_ones_rate_all_others_count():
    assert decided("at each one's own rate", losses("own")).status == "not held"  # pre-norm is ahead

    def rezero_ahead(config, seed):
        return {"loss": 0.05 if config.get("arm") == "ReZero" else 0.1 + seed, "lr": 0.01}

    outcome = decided("at each one's own rate", rezero_ahead)
    assert outcome.status == "held"
    assert outcome.statistic.p == pytest.approx(2 / 2**5)
    diverged = decided("at each one's own rate", losses("own", ReZero=float("inf")))
    assert (diverged.status, diverged.statistic) == ("not held", None)
