"""What is taken of the inside of layers: mixing matrices as the layers made them, and what becomes of them."""

import copy
import math
import pickle
import shutil
import warnings

import pytest
import torch
from torch import nn

import levada
from levada.report.watch import watch_view
from levada.runs import Run, doctor
from levada.runs.inside import mixed_at, why_not
from levada.runs.resealing import reseal
from levada.watching.measure.mixing import MIXED, MixingTaps

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")

DIM, DEPTH, TOKENS = 6, 3, 100
CONNECTIONS = {
    "manifold": (levada.ManifoldHyperConnection, {}),
    "hyper": (levada.HyperConnection, {"head": "mean", "streams": 3}),
    "static": (levada.HyperConnection, {"head": "mean", "streams": 2, "dynamic": False}),
    "identity": (levada.IdentityHyperConnection, {}),
    "gated": (levada.GatedResidual, {}),
    "single_pass": (levada.SinglePassManifoldHyperConnection, {}),
    "sparse": (levada.SparseHyperConnection, {"streams": 5, "active": 3, "fixed": 1}),
}


def make(kind="manifold", **options):
    torch.manual_seed(0)
    connection, own = CONNECTIONS[kind]
    branches = [nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(DEPTH)]
    stack = levada.Stack(branches, connection, dim=DIM, **own, **options)
    for name, parameter in stack.named_parameters():  # away from the start, where next to nothing is mixed
        if "connection" in name and parameter.is_floating_point():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return stack


def data(steps=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, TOKENS // 2, DIM, generator=generator) for _ in range(steps)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train(model, optimizer, batches, parts=1, dtype=None):
    losses = []
    for x in batches:
        optimizer.zero_grad()
        for part in x.chunk(parts):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = model(part).float().square().mean() / parts
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses)


def watch(model, optimizer, **options):
    return levada.watch(model, optimizer, **{"every": 1, "max_overhead": math.inf, **options})


def by_hand(model, x, dtype=None):
    """Return each layer's matrices by token, `(tokens, n, n)`, in plain calls of the protocol."""
    found = []
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        state = model[0].connection.begin(x)
        for layer in model:
            streams = state if isinstance(state, torch.Tensor) else state[0]
            mix = list(layer.connection.coefficients(streams))[1]
            n = layer.connection.streams
            mix = torch.eye(n) if mix is None else mix
            found.append(mix.double().expand(*streams.shape[:-2], n, n).reshape(-1, n, n))
            state = layer(state)
    return found


def expect(taken, parts):
    """Compare with the matrices of the micro-batches of a step."""
    mixing = taken.mixing
    assert mixing.layers == tuple(f"layers.{i}.connection" for i in range(DEPTH))
    assert mixing.chains == (0,) * DEPTH
    few = [[m[torch.arange(min(64, len(m))) * len(m) // min(64, len(m))] for m in part] for part in parts]
    products = [torch.eye(few[-1][0].shape[-1]).double()]
    for m in few[-1]:
        products.append(m @ products[-1])
    back = [torch.eye(few[-1][0].shape[-1]).double()]
    for m in reversed(few[-1]):
        back.append(back[-1] @ m)
    for i in range(DEPTH):
        every = torch.cat([part[i] for part in parts])
        seen = torch.cat([part[i] for part in few])
        torch.testing.assert_close(mixing.matrices[i].double(), every.mean(0), rtol=1e-5, atol=1e-6)
        told = {name: float(mixing.signals[name][i]) for name in MIXED}
        hand = {
            "mixing_row_deviation": (seen.sum(-1) - 1).abs().max(),
            "mixing_column_deviation": (seen.sum(-2) - 1).abs().max(),
            "composite_forward_gain": products[i + 1].mean(0).sum(-1).abs().max(),
            "composite_backward_gain": back[DEPTH - i].mean(0).sum(-2).abs().max(),
        }
        assert told == pytest.approx({name: float(value) for name, value in hand.items()}, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_matrices_and_gains_are_those_of_the_layers_at_that_step(kind):
    model = make(kind)
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data():
            hand = by_hand(model, x)
            train(model, optimizer, [x])
            expect(watched.samples[-1].taken, [hand])


@pytest.mark.parametrize(
    ("parts", "dtype", "options"),
    [(2, None, {}), (1, torch.bfloat16, {}), (1, None, {"checkpoint": 2}), (1, None, {"stacked": True})],
    ids=["accumulation", "autocast", "checkpointing", "stacked"],
)
def test_in_the_situations_of_training(parts, dtype, options):
    model, plain = make(**options), make()
    optimizer = sgd(model)
    with warnings.catch_warnings(), watch(model, optimizer) as watched:
        warnings.simplefilter("error")
        for x in data():
            plain.load_state_dict(model.state_dict())
            hand = [by_hand(plain, part, dtype) for part in x.chunk(parts)]
            train(model, optimizer, [x], parts, dtype)
            expect(watched.samples[-1].taken, hand)


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_the_function_and_the_random_state_stay_as_they_are_to_the_last_bit(kind):
    plain, model = make(kind), make(kind)
    state = torch.get_rng_state()
    expected = train(plain, sgd(plain), data(3))
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        assert torch.equal(train(model, optimizer, data(3)), expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert watched.samples[-1].taken.mixing is not None
    assert not any({"open", "update", "coefficients"} & vars(module).keys() for module in model.modules())


def test_of_a_pass_that_failed_or_was_cleared_nothing_counts():
    model = make("hyper")
    optimizer = sgd(model)
    first, second = data()
    with watch(model, optimizer) as watched:
        model(first).sum().backward()
        optimizer.zero_grad()
        hand = by_hand(model, second)
        with torch.no_grad():
            model(first)
        model(second).sum().backward()
        optimizer.step()
        expect(watched.samples[-1].taken, [hand])


def test_layers_that_run_compiled_are_said_to_be_unseen(tmp_path):
    model = make(compile={"backend": "eager"})
    optimizer = sgd(model)
    with watch(model, optimizer, run=tmp_path / "run") as watched:
        train(model, optimizer, data())
    taken = watched.samples[-1].taken
    assert (taken.mixing, taken.compiled) == (None, DEPTH)
    run = Run(tmp_path / "run")
    assert run.parts() == ()
    assert why_not(run.events(), "mixing").startswith("3 layers with streams run compiled")


def test_a_loop_that_compiles_the_model_later_gets_one_whole_graph():
    torch._dynamo.reset()
    model, plain = make(), make()
    optimizer = sgd(model)
    with watch(model, optimizer, every=2) as watched:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        losses = train(compiled, optimizer, data(4))
    torch.testing.assert_close(losses, train(plain, sgd(plain), data(4)))
    assert watched.samples[-1].taken.mixing is None
    torch._dynamo.reset()


def test_copies_and_pickles_of_a_model_tell_no_one():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert twin[0].connection.open._module is twin[0].connection
        for other in (twin, loaded):
            other(data()[0]).sum().backward()
        hand = by_hand(model, data()[1])
        train(model, optimizer, data()[1:])
        expect(watched.samples[-1].taken, [hand])
    assert torch.equal(twin(data()[0]), loaded(data()[0]))


class Odd(nn.Module):
    streams = 2

    def coefficients(self, state):
        return torch.zeros(2), torch.eye(2)

    def forward(self, x):
        self.coefficients(x)
        return x


def test_an_error_ends_the_taking_with_one_warning_and_nothing_else():
    model = nn.Sequential(nn.Linear(DIM, DIM), Odd(), nn.Linear(DIM, DIM))
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="coefficients raised ValueError") as told, watch(model, optimizer) as watched:
        train(model, optimizer, data(3))
    assert len(told) == 1
    assert [sample.step for sample in watched.samples] == [0, 1, 2]
    assert watched.samples[-1].taken is None
    assert float(watched.samples[-1].values["gradient_rms"][0]) > 0


def test_it_is_ended_by_a_switch(tmp_path):
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer, run=tmp_path / "run") as watched:
        watched.coefficients.on = False
        train(model, optimizer, data())
    assert watched.samples[-1].taken is None
    run = Run(tmp_path / "run")
    assert run.parts() == ()
    assert why_not(run.events(), "mixing").startswith("It was not recorded")


def test_of_very_many_layers_an_even_choice_is_kept_and_the_product_goes_over_all(monkeypatch):
    monkeypatch.setattr("levada.watching.measure.mixing._NUMBERS", 2 * 3**2)
    model = make("hyper")
    taps = MixingTaps(model, lambda: 1)
    taps.attach()
    hand = by_hand(model, data()[0])
    found = taps.pack({1}, torch.device("cpu"))
    mixing = found.host(found.values)
    assert (mixing.layers, mixing.total) == (("layers.0.connection", "layers.2.connection"), DEPTH)
    few = [m[torch.arange(64) * TOKENS // 64] for m in hand]
    whole = (few[2] @ few[1] @ few[0]).mean(0)
    assert float(mixing.signals["composite_forward_gain"][1]) == pytest.approx(float(whole.sum(-1).abs().max()))


@pytest.fixture
def recorded(tmp_path):
    """A run of which every number is in the samples too."""
    model = make("hyper")
    optimizer = sgd(model)
    with watch(model, optimizer, run=tmp_path / "run") as watched:
        train(model, optimizer, data(5))
        yield watched, tmp_path / "run"


def test_a_run_keeps_them_to_one_part_in_a_hundred_thousand_also_while_it_is_written(recorded):
    watched, folder = recorded
    assert watched._listeners[-1].flush()
    for _ in ("being written", "sealed"):
        signals = Run(folder).signals(part="mixing")
        assert signals.steps == (0, 1, 2, 3, 4)
        for sample in watched.samples:
            first, last, layers = mixed_at(signals, sample.step)
            assert (first, last) == (sample.step, sample.step)
            for i, layer in enumerate(layers):
                assert layer.name == f"layers.{i}.connection"
                torch.testing.assert_close(
                    torch.tensor(layer.matrix).float(), sample.taken.mixing.matrices[i], rtol=1e-5, atol=1e-9
                )
                for name in MIXED:
                    assert layer.told[name] == pytest.approx(float(sample.taken.mixing.signals[name][i]), rel=0.003)
        assert mixed_at(signals)[0] == 4
        assert mixed_at(signals, 2)[0] == 2
        watched.close()
    figures = watch_view(Run(folder), "run", list(Run(folder).events()))["figures"]
    (drawn,) = (one for one in figures if one["title"] == "How the streams are mixed, layer by layer, at step 4")
    first = watched.samples[-1].taken.mixing.matrices[0]
    assert f"to stream 0 from stream 0: {float(first[0, 0]):.3g}" in drawn["svg"]
    assert doctor(folder).healthy
    assert [rank.part for rank in doctor(folder).signals] == ["", "mixing"]


def test_a_frame_that_was_changed_is_told_and_takes_its_sample_alone(recorded):
    watched, folder = recorded
    assert watched._listeners[-1].flush()
    (tail,) = (folder / "signals" / "rank-00000" / "mixing").glob("tail-*.log")
    content = bytearray(tail.read_bytes())
    copied = folder.with_name("copy")
    shutil.copytree(folder, copied)
    place = content.rindex(b"\xf5Lv\n") + 60  # in the last of five
    content[place] ^= 1
    (copied / tail.relative_to(folder)).write_bytes(content)
    signals = Run(copied).signals(part="mixing")
    assert signals.steps == (0, 1, 2, 3)
    assert [damage.kind for damage in signals.damage] == ["checksum"]
    health = doctor(copied)
    assert not health.healthy
    assert "mixing of rank 0: 4 samples" in str(health)
    assert any("mixing" in told for told in reseal(copied))
    assert mixed_at(Run(copied).signals(part="mixing"))[0] == 3
