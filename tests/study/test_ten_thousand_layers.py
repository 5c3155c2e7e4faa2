from __future__ import annotations

import importlib.util
import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError
from levada.studies import find
from levada.studies import ten_thousand_layers as r9
from levada.study import Results, execute
from levada.theory import orthogonal_tanh

SCRIPT = Path(levada.__file__).parents[2] / "docs" / "results" / "logs" / "write_r9.py"
BOTH = {"deep_networks": ("ReZero", "orthogonal")}  # as at the scale full


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    with ThreadPoolExecutor(1) as pool:
        folder = tmp_path_factory.mktemp("runs")
        return execute(r9.STUDY, scale="smoke", out=folder, executor=pool, settings=BOTH)


@pytest.fixture(scope="module")
def found(smoke):
    settings = r9.STUDY.resolve("smoke", BOTH)
    return Results(list(r9.configurations(settings, range(settings["seeds"]))), levada.study.results(smoke))


def test_it_runs_at_the_scale_smoke_and_decides_nothing(smoke, found):
    assert find("ten_thousand_layers") is r9.STUDY
    assert levada.study.failures(smoke) == {}
    told = levada.study.claims(smoke)
    assert len(told) == 9
    assert {claim["status"] for claim in told.values()} == {"not decided"}
    forward, backward, losses = r9.STUDY.figures(found)
    assert len(forward.series) == len(backward.series) == 4 * 2 + 3
    assert len(losses.series) == 9 * 2 + 1
    assert {s.x[0] for s in forward.series if s.style == "measured"} == {0}
    (told,) = [s for s in backward.series if s.style == "predicted" and s.group == "orthogonal"]
    assert told.x[-1] == 59  # one layer before the end,
    assert told.y[-1] == pytest.approx(orthogonal_tanh(1, 8, 1 / 120).signal)  # where little is lost


def test_rezero_starts_as_the_identity_and_others_do_not(found):
    assert found.column("same", measures="start", network="ReZero") == [True, True]
    assert found.column("same", measures="start", network="orthogonal") == [False, False]
    for network in r9.NETWORKS:
        for _, values in found.where(measures="start", network=network):
            assert values["first"] == pytest.approx([values["forward"][0], values["gradient"][0]], rel=1e-5)
            assert values["last"] == pytest.approx([values["forward"][-1], values["gradient"][-1]], rel=1e-5)
            assert values["boundaries"] == [*range(61)]
            least = [min(values["forward"]), min(values["gradient"])]
            assert values["least"] == pytest.approx(least, rel=1e-5)
            largest = [max(values["forward"]), max(values["gradient"])]
            assert values["largest"] == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("name", ["ReZero", "orthogonal"])
def test_frozen_layers_stay_while_the_maps_in_and_out_train(name):
    inputs, targets = torch.randn(20, 6), torch.arange(20) % 10
    config = {"network": name, "depth": 5, "dim": 4}
    whole, network = (r9._network(config, [0, 7], inputs) for _ in range(2))
    model = r9._frozen(network)
    assert (model is network) == (name == "orthogonal")
    assert torch.equal(model(inputs[:, None].expand(-1, 2, -1)), whole(inputs[:, None].expand(-1, 2, -1)))
    r9.descend(model, inputs, targets, r9.Descent("Adam", 0.01, 3, 5), [0, 7])
    layers = zip(network.stack.parameters(), whole.stack.parameters(), strict=True)
    assert all(torch.equal(own, drawn) for own, drawn in layers)
    assert (network.first.weight != whole.first.weight).all()
    assert (network.last.weight != whole.last.weight).all()
    for layer in network.stack if name == "ReZero" else ():  # a layer that does something is not left out
        layer.connection.scale.data[1] = 0.1
        assert r9._frozen(network) is network


def test_a_frozen_network_is_that_of_its_layers(found):
    for depth in (12, 60):
        shape = {"measures": "training", "network": "ReZero", "depth": depth}
        own, frozen = (found.column("curve", frozen=frozen, **shape) for frozen in (False, True))
        assert [c["values"][0] for c in own] == pytest.approx([c["values"][0] for c in frozen], rel=1e-5)
        assert own != frozen


def test_a_direction_is_that_of_its_seed_alone():
    parameter = torch.randn(2, 3, 4) * torch.tensor([1.0, 5.0])[:, None, None]
    both, alone = (
        r9._line(parameter[-len(seeds) :], [torch.Generator().manual_seed(seed) for seed in seeds])
        for seeds in ([0, 1], [1])
    )
    assert torch.equal(both[1:], alone)
    assert r9._line(torch.zeros(1, 500, 4), [torch.Generator().manual_seed(0)]).std() == pytest.approx(1, rel=0.1)
    longer = r9._line(torch.full((1, 500, 4), 3.0), [torch.Generator().manual_seed(0)])
    assert longer.std() == pytest.approx(3, rel=0.1)


def test_the_ends_of_every_example_are_kept(found):
    for _, own in found.where(measures="start", network="orthogonal"):
        assert len(own["examples"]) == found.configs[-1]["batch_size"]
        for place, key in enumerate(("first", "last")):
            for kind in (0, 1):  # state, gradient
                squares = [example[2 * kind + place] ** 2 for example in own["examples"]]
                assert (sum(squares) / len(squares)) ** 0.5 == pytest.approx(own[key][kind], rel=1e-9)
    config = found.configs[-1] | {"network": "orthogonal"}
    inputs, targets = r9._examples(config)
    network = r9._network(config, [0, 1], inputs).double()
    x, wanted = r9._batch(config, [0, 1], inputs.double(), targets)
    state = network.stack(network.begin(x)).detach().requires_grad_()
    losses = nn.functional.cross_entropy(network.end(state)[3, 1], wanted[3, 1])
    (gradient,) = torch.autograd.grad(losses, state)
    a, b = state.detach()[1, 3], gradient[1, 3]
    cosine = float((a @ b) ** 2 / (a @ a) / (b @ b))
    assert own["examples"][3][4] == pytest.approx(cosine, rel=1e-9)


def test_the_gradient_is_checked_by_checkpointing_and_along_a_line(found, monkeypatch):
    assert found.column("differ", measures="exactness") == [0] * 4
    assert all(found.column("finite", measures="exactness"))
    assert max(found.column("apart", measures="exactness")) < 1e-6
    (_, cell) = [cell for cell in found.cells if cell.config["measures"] == "exactness"]
    assert cell.config["network"] == "orthogonal"

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.tanh())
            return x.tanh()

        @staticmethod
        def backward(ctx, gradient):
            return 1.00001 * gradient * (1 - ctx.saved_tensors[0] ** 2)

    monkeypatch.setitem(r9.NETWORKS, "orthogonal", (*r9.NETWORKS["orthogonal"][:2], Wrong.apply))
    assert all(values["apart"] > 1e-5 for values in r9.run(cell.config, cell.seeds))


def test_a_gradient_that_checkpointing_changes_is_counted(found, monkeypatch):
    (_, cell) = [cell for cell in found.cells if cell.config["measures"] == "exactness"]
    calls = itertools.count()
    monkeypatch.setitem(
        r9.NETWORKS, "orthogonal",
        (*r9.NETWORKS["orthogonal"][:2], lambda x: x.tanh() * (1 + 1e-6 * next(calls))),
    )  # fmt: skip
    assert all(values["differ"] > 1000 for values in r9.run(cell.config, cell.seeds))


def test_a_convolutional_network_keeps_its_signal_where_it_is_delta_orthogonal():
    config = {"depth": 40, "channels": 8, "draw": "delta-orthogonal"}
    images = torch.randn(3, 1, 28, 28)
    network = r9._convolutional(config, images, 0)
    state = network.stem(images)
    assert state.shape == (3, 8, 7, 7)
    after = network.stack(state)
    # Each position by itself: the taps beside the centre are zero.
    squares = state.square().mean(1).flatten().tolist()
    kept = sum(square * orthogonal_tanh(40, 8, square).signal ** 2 for square in squares) / sum(squares)
    assert (after.norm() / state.norm()).item() == pytest.approx(kept**0.5, rel=0.02)
    assert network(images).shape == (3, 10)
    again = r9._convolutional(config, images, 0)
    assert torch.equal(network(images), again(images))
    assert not torch.equal(network(images), r9._convolutional(config, images, 1)(images))
    default = r9._convolutional({**config, "draw": "PyTorch's default"}, images, 0)
    far = [default.stack(default.stem(x)) for x in (images, -images)]
    assert (far[0] - far[1]).norm() < 1e-3 * far[0].norm()  # it forgets what came in


def test_one_network_as_a_replica():
    model = r9._AsReplica(nn.Flatten())
    assert model(torch.ones(5, 1, 2, 3)).shape == (5, 1, 6)


def test_data(tmp_path):
    inputs, targets = r9._examples({"data": "mnist", "examples": 50})
    assert inputs.shape == (50, 1, 28, 28)
    assert len(targets) == 50
    assert inputs.square().mean().item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(UsageError, match=r"lacks data_batch_1\.bin"):
        r9._examples({"data": "cifar10", "folder": str(tmp_path), "examples": 50})


def test_full_has_the_configurations_of_the_papers():
    settings = r9.STUDY.resolve("full")
    configs = [cell.config for cell in r9.configurations(settings, range(5))]
    deep = next(c for c in configs if c["measures"] == "training" and c["network"] == "ReZero")
    assert (deep["depth"], deep["dim"], deep["optimizer"], deep["lr"]) == (10000, 150, "Adagrad", 0.003)
    assert deep["steps"] == 25 * (50000 // 128)
    shapes = {(c["depth"], c["channels"]) for c in configs if c["measures"] == "convolution"}
    assert shapes == {(10000, 64), (2500, 256)}


def test_the_log_holds_every_layer(smoke, found, tmp_path):
    spec = importlib.util.spec_from_file_location("write_r9", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = script.write(smoke.path, tmp_path)
    assert sorted(file.name for file in written) == [
        "R9-ReZero-60-training.jsonl", "R9-orthogonal-60-start.jsonl", "R9-orthogonal-60-training.jsonl",
    ]  # fmt: skip
    told, losses, *parts = map(json.loads, (tmp_path / "R9-ReZero-60-training.jsonl").read_text().splitlines())
    assert (told["seed"], told["config"]["depth"], len(losses["loss"])) == (0, 60, 2)
    (call,) = smoke.events("study")
    assert told["commits"] == [call["commit"]]
    deep = {"measures": "training", "network": "ReZero", "depth": 60, "frozen": False}
    assert told["training_loss"] == found.column("loss", **deep)[0]
    assert [part["boundary"] for part in parts] == [0]
    (_, values), _ = found.where(**deep)
    assert parts[0]["forward"] == values["forward"]
    assert parts[0]["gradient"] == values["gradient"]
    started, *parts = map(json.loads, (tmp_path / "R9-orthogonal-60-start.jsonl").read_text().splitlines())
    assert started["training_loss"] is None
    assert len(parts[0]["gradient"]) == 61


def decided(claim, value):
    settings = r9.STUDY.resolve("small", BOTH)
    cells = r9.configurations(settings, range(5))
    values = {cell.key(seed): value(cell.config, seed) for cell in cells for seed in cell.seeds}
    (found,) = [c for c in r9.STUDY.claims(settings) if c.name == claim]
    return found.test(Results(cells, values))


@pytest.mark.parametrize(("last", "status"), [(True, "held"), (False, "not held")])
def test_rezero_must_be_the_identity_in_every_seed(last, status):
    def value(config, seed):
        return {"same": config.get("network") == "ReZero" and (seed < 4 or last)}

    outcome = decided("ReZero starts as the identity", value)
    assert outcome.status == status


def carried(network, *, signal=1.0, gradient=1.0, aligned=0.5, least=0.5, largest=1.0):
    """All examples where the closed form says, but one of seed 2."""
    settings = r9.STUDY.resolve("small")

    def example(q, cosine, far_signal=1.0, far_gradient=1.0):
        s = 1 + 2 * 32 / 34 * q * settings["deep"]
        across, along = (1 - cosine) / s, cosine / s**3
        return [q**0.5, far_signal * (q / s) ** 0.5, far_gradient * (across + along) ** 0.5, 1.0, cosine]

    def value(config, seed):
        here = seed == 2 and config.get("network") == network and config["measures"] == "start"
        low, high = (least, largest) if here else (0.5, 1.0)
        examples = [example(3e-5, 0.0), example(6e-5, 1.0)]
        examples.append(example(5e-5, aligned, signal, gradient) if here else example(5e-5, 0.1))
        return {"first": [0.01, 3.0], "last": [0.007, 3.0], "least": [0.01 * low, 3 * low],
                "largest": [0.01 * high, 3 * high], "examples": examples}  # fmt: skip

    return value


@pytest.mark.parametrize(
    ("away", "status"),
    [({}, "held"), ({"signal": 1.0049}, "held"), ({"signal": 1.0051}, "not held"), ({"signal": 0.9949}, "not held"),
     ({"gradient": 1.0051}, "not held"), ({"gradient": 0.9949}, "not held"), ({"gradient": 0.9951}, "held")],
)  # fmt: skip
def test_every_example_must_end_where_the_closed_form_says(away, status):
    outcome = decided("orthogonal weights carry a signal without skips", carried("orthogonal", **away))
    assert outcome.status == status
    departures = outcome.numbers["signal: largest departure of an example from the closed form"]
    assert departures[2] == pytest.approx(abs(away.get("signal", 1.0) - 1), abs=1e-6)


@pytest.mark.parametrize(
    ("claim", "network"),
    [("orthogonal weights carry a signal without skips", "orthogonal"), ("criticality is enough", "Gaussian")],
)
@pytest.mark.parametrize(
    ("bounds", "status"),
    [({"least": 0.101}, "held"), ({"least": 0.099}, "not held"), ({"largest": 9.9}, "held"),
     ({"largest": 10.1}, "not held")],
)  # fmt: skip
def test_all_layers_stay_within_bounds(claim, network, bounds, status):
    assert decided(claim, carried(network, **bounds)).status == status


@pytest.mark.parametrize(
    ("spoilt", "status"),
    [({}, "held"), ({"differ": 1}, "not held"), ({"finite": False}, "not held"), ({"apart": 1.1e-5}, "not held"),
     ({"apart": math.nan}, "not held")],
)  # fmt: skip
@pytest.mark.parametrize("network", ["ReZero", "orthogonal"])
def test_one_derivative_that_differs_is_not_exact(network, spoilt, status):
    def value(config, seed):
        here = seed == 1 and config.get("network") == network
        return {"gradients": 9, "differ": 0, "finite": True, "apart": 1e-7, **(spoilt if here else {})}

    assert decided("the gradient is exact", value).status == status


HALF = math.log(10) / 2


@pytest.mark.parametrize(
    ("network", "loss", "status"),
    [("orthogonal", HALF - 1e-9, "held"), ("orthogonal", HALF + 1e-6, "not held"), ("Gaussian", 2.2827, "held"),
     ("Gaussian", 2.2825, "not held"), ("PyTorch's default", 2.3225, "held"),
     ("PyTorch's default", 2.3227, "not held")],
)  # fmt: skip
def test_without_skips_one_start_learns_and_two_stay(network, loss, status):
    def value(config, seed):
        usual = 0.5 if config.get("network") == "orthogonal" else 2.3026
        return {"loss": loss if seed == 3 and config.get("network") == network else usual}

    assert decided("a thousand layers without skips", value).status == status


@pytest.mark.parametrize(
    ("claim", "network", "depth"),
    [("a thousand layers of ReZero", "ReZero", 1000), ("ten thousand layers of ReZero", "ReZero", 10000),
     ("ten thousand layers without skips", "orthogonal", 10000)],
)  # fmt: skip
@pytest.mark.parametrize(
    ("gains", "status"),
    [((0.1, 0.2, 0.3, 0.2, 0.1), "held"), ((0.0,) * 5, "not decided"), ((0.1, -0.2, 0.3, -0.2, 0.1), "not decided"),
     ((-0.1, -0.2, -0.3, -0.2, -0.1), "not held"), ((0.1, 0.2, -math.inf, 0.2, 0.1), "not held")],
)  # fmt: skip
def test_layers_learn_if_the_network_ends_below_its_frozen_twin(claim, network, depth, gains, status):
    def value(config, seed):
        own = (config.get("network"), config["depth"]) == (network, depth) and not config.get("frozen")
        return {"loss": 2.0 - gains[seed] if own else 2.0}

    outcome = decided(claim, value)
    assert outcome.status == status
    assert outcome.numbers["gain over frozen layers"] == pytest.approx(gains)


@pytest.mark.parametrize(
    ("draw", "loss", "status"),
    [("delta-orthogonal", HALF, "held"), ("delta-orthogonal", HALF + 1e-6, "not held"),
     ("PyTorch's default", 2.2825, "not held"), ("PyTorch's default", 2.3227, "not held")],
)  # fmt: skip
def test_convolutions_learn_or_stay(draw, loss, status):
    def value(config, seed):
        usual = 0.5 if config.get("draw") == "delta-orthogonal" else 2.3026
        return {"loss": loss if seed == 0 and config.get("draw") == draw else usual}

    assert decided("convolutions without skips", value).status == status
