"""Which layers follow one another, whose weights are whose, and at which block a layer lies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import levada
from levada.conversion import convert
from levada.probe import Probe
from levada.probe.chains import chains_of
from levada.probe.mixing import mixing_signals, site_of
from levada.probe.streams import Sample
from levada.probe.trace import Site

DIM = 16


class Branch(nn.Module):
    def __init__(self, dim=DIM):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear(self.norm(x)).tanh()


class Block(Branch):
    def forward(self, x):
        return x + super().forward(x)


class Loop(nn.Module):
    """Adds in its own forward."""

    def __init__(self, depth=3):
        super().__init__()
        self.e, self.b = nn.Linear(DIM, DIM), nn.ModuleList(Branch() for _ in range(depth))
        self.o = nn.LayerNorm(DIM)

    def forward(self, x):
        x = self.e(x)
        for branch in self.b:
            x = x + branch(x)
        return self.o(x)


class ByTurns(nn.Module):
    """Two stacks whose layers run by turns."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (levada.Stack([Branch() for _ in range(3)], levada.HyperConnection, dim=DIM) for _ in "ab")

    def forward(self, x):
        a, b = self.a.layers[0].connection.begin(x), self.b.layers[0].connection.begin(x)
        for one, other in zip(self.a.layers, self.b.layers, strict=True):
            a, b = one(a), other(b)
        return a.sum(-2) + b.sum(-2)


def probed(model, *shape):
    torch.manual_seed(0)
    with Probe(model) as probe:
        model(torch.randn(*(shape or (6, DIM)))).sum().backward()
        probe.step()
    return probe.trace()


def sample(name, layer, mix=None, *, read=(0.5, 0.5), depth=None, width=4, ahead=False):
    mix = torch.eye(2, dtype=torch.float64) if mix is None else torch.as_tensor(mix, dtype=torch.float64)
    mix = mix[None] if mix.ndim == 2 else mix
    row = torch.tensor([read], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)[None]
    return Sample(name, layer, mix, row, row, eye, torch.zeros(1), depth, width, ahead)


def names(*samples):
    return [[one.name for one in chain.samples] for chain in chains_of(samples)]


def test_layers_follow_one_another_by_index_and_as_long_as_they_fit():
    a, b = [sample(f"a.{i}", i) for i in range(3)], [sample(f"b.{i}", i) for i in range(2)]
    assert names(*a, *b) == [["a.0", "a.1", "a.2"], ["b.0", "b.1"]]
    assert names(a[0], b[0], a[1], b[1], a[2]) == [["a.0", "a.1", "a.2"], ["b.0", "b.1"]]
    assert names(a[0], a[2]) == [["a.0", "a.2"]]  # one was not measured
    assert names(a[0], sample("a.1", 1, depth=3)) == [["a.0"], ["a.1"]]
    assert names(a[0], sample("a.1", 1, width=8)) == [["a.0"], ["a.1"]]
    assert names(a[0], a[0]) == [["a.0"], ["a.0"]]
    assert names(sample("x", None), sample("y", None), a[0]) == [["x", "y"], ["a.0"]]


def test_signals_are_in_the_order_of_the_calls():
    two, three = 2 * torch.eye(2), 3 * torch.eye(2)
    called = [sample("a.0", 0, two), sample("b.0", 0, three), sample("a.1", 1, two), sample("b.1", 1, three)]
    assert [row["composite_forward_gain"] for row in mixing_signals(called)] == [2, 3, 4, 9]
    assert [row["composite_backward_gain"] for row in mixing_signals(called)] == [4, 9, 2, 3]


def test_what_a_layer_makes_for_the_next_is_under_the_name_of_the_next():
    chain = [sample(f"a.{i}", i, read=read, ahead=True) for i, read in enumerate([(0.1, 0.9), (0.3, 0.7)])]
    (found,) = chains_of(chain)
    assert [one.read.tolist() for one in found.samples] == [[[1.0, 0.0]], [[0.1, 0.9]]]
    assert found.head.tolist() == [[0.3, 0.7]]
    (late,) = chains_of(chain[1:])
    assert late.samples[0].read.isnan().all()


def test_single_pass_layers_have_the_weights_by_which_they_read():
    stack = levada.Stack([Branch() for _ in range(4)], levada.SinglePassManifoldHyperConnection, dim=DIM)
    trace = probed(nn.Sequential(nn.Linear(DIM, DIM), stack))
    read = [weights["read"] for weights in trace.context["stream_weights"].values()]
    expected = torch.full((4, 4), 0.1) + 0.6 * torch.eye(4)
    expected[0] = torch.eye(4)[0]
    torch.testing.assert_close(torch.tensor(read), expected)
    assert trace.context["stream_weights"]["1.layers.3"]["head"] == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert trace["read_share"][0, 1:].tolist() == pytest.approx([1.0, 0.7, 0.7, 0.7])


@pytest.mark.parametrize("tokens", [4, 8])
@pytest.mark.parametrize("dim", [16, 32])
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_read_of_fractions_is_counted_by_fraction_whatever_the_shapes(tokens, dim, dynamic):
    stack = levada.Stack([Branch(dim)], levada.FractionalConnection, dim=dim, fractions=4, dynamic=dynamic)
    with torch.no_grad():
        stack.layers[0].connection.static_read.copy_(torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0.0, 1, 0, 0]]))
    assert probed(stack, tokens, dim)["read_share"][0, 0] == pytest.approx(0.75)


def test_two_stacks_in_one_model_are_two_chains():
    a, b = (levada.Stack([Branch() for _ in range(n)], levada.HyperConnection, dim=DIM) for n in (3, 2))
    trace = probed(nn.Sequential(a, nn.LayerNorm(DIM), b))
    told = trace.context["chains"]
    assert [chain["layers"] for chain in told] == [[f"0.layers.{i}" for i in range(3)], ["2.layers.0", "2.layers.1"]]
    assert [chain["sites"] for chain in told] == [chain["layers"] for chain in told]


def test_stacks_that_run_by_turns_are_two_chains():
    told = probed(ByTurns()).context["chains"]
    assert [len({name.split(".")[0] for name in chain["layers"]}) for chain in told] == [1, 1]
    assert [len(chain["layers"]) for chain in told] == [3, 3]


def test_a_converted_model_with_two_streams_has_two_chains():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Sequential(*[Block() for _ in range(n)]) for n in (3, 2))
            self.e, self.m, self.o = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.LayerNorm(DIM)

        def forward(self, x):
            return self.o(self.b(self.m(self.a(self.e(x)).tanh())))

    net = convert(Model(), levada.HyperConnection, batch=torch.randn(6, DIM))
    told = probed(net).context["chains"]
    assert [chain["layers"] for chain in told] == [["a.0", "a.1", "a.2"], ["b.0", "b.1"]]


@pytest.mark.parametrize("kind", [levada.HyperConnection, levada.IdentityHyperConnection])
def test_layers_of_a_loop_have_their_own_names_and_lie_at_or_before_their_branches(kind):
    net = convert(Loop(), kind, batch=torch.randn(6, DIM))
    trace = probed(net)
    assert list(trace.context["mixing"]) == [f"connections.{i}" for i in range(3)]
    (chain,) = trace.context["chains"]
    assert chain["sites"][0] == "b.0"
    assert "e" not in chain["sites"]


def test_a_block_that_ends_with_what_the_next_one_reads_holds_none_of_it():
    given = [("e", ("e.weight", "c.0.scale")), ("b.0", ("b.0.weight",)), ("linear", ("c.1.scale",))]
    sites = [Site(name, i, "", (), held) for i, (name, held) in enumerate(given)]
    assert site_of("c.0", sites) == 1
    assert site_of("c.0", sites, ahead=True) == 0
    assert site_of("c.1", sites) == 2
    assert site_of("c.0", sites[:1]) == 0


def test_turns_keep_the_norm_of_a_column_and_shrinking_does_not():
    angles = torch.linspace(0, 6, 64, dtype=torch.float64)
    turns = torch.stack([torch.stack([angles.cos(), -angles.sin()], -1), torch.stack([angles.sin(), angles.cos()], -1)])
    turns = turns.permute(1, 0, 2)  # one for each token; their mean is nearly zero
    kept = mixing_signals([sample(f"a.{i}", i, turns) for i in range(3)])
    assert [row["composite_column_norm"] for row in kept] == pytest.approx([1.0] * 3)
    shrunk = mixing_signals([sample(f"a.{i}", i, [[0.1, 0.0], [0.0, 1.0]]) for i in range(3)])
    assert [row["composite_column_norm"] for row in shrunk] == pytest.approx([1e-3, 1e-2, 1e-1])
    pooled = mixing_signals([sample("a.0", 0, turns), sample("a.1", 1, turns[:8])])
    assert all(math.isnan(row["composite_column_norm"]) for row in pooled)
