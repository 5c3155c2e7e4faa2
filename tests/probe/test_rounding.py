"""Coefficients made in bfloat16: what hardware would get, for any layer with streams, and nothing is left behind."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import levada
from levada.connections.streams import Coefficients, MultiStream
from levada.probe import Probe
from levada.probe.rounding import rounding_error
from levada.probe.streams import MAX_TOKENS, Mixing

DIM = 8
FINISHED = 2**-9  # what rounding the finished coefficients costs at most
KINDS = [
    (levada.HyperConnection, {}),
    (levada.HyperConnection, {"dynamic": False}),
    (levada.FractionalConnection, {"fractions": 4}),
    (levada.IdentityHyperConnection, {}),
    (levada.GatedResidual, {}),
    (levada.SinglePassManifoldHyperConnection, {}),
    (levada.SparseHyperConnection, {"streams": 6, "active": 3, "fixed": 1}),
    *[
        (levada.ManifoldHyperConnection, {"manifold": name})
        for name in ("birkhoff", "permutations", "kronecker", "orthogonal", "isometric", "spectral")
    ],
    (levada.ManifoldHyperConnection, {"form": "deepseek_v4"}),
]
NAMES = [f"{c.__name__} {' '.join(map(str, o.values()))}" for c, o in KINDS]


class ByHand(MultiStream):
    """Coefficients of a product, a norm and a few operations by element, in the type of the state at least float32."""

    def __init__(self, dim, *, layer=0, depth=1, streams=2):
        super().__init__(dim, streams=streams, layer=layer, depth=depth)
        self.weight = nn.Parameter(torch.randn(2 * streams, dim * streams))
        self.hidden = nn.Linear(1, 1)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))
        self.way = ""

    def coefficients(self, state):
        return self.made(state.flatten(-2).float(), self.weight.float())

    def made(self, x, weight):
        if self.way == "random":
            x = self.dropout(x)
        if self.way == "buffer":
            self.seen.add_(1)
        if self.way == "module":
            x = x + 0 * self.hidden(x[..., :1])
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        read, write = torch.sigmoid(nn.functional.linear(x, weight)).chunk(2, -1)
        total = read.clone()
        total += write
        return Coefficients(read, None, write / total)


def measured(connection, state):
    with torch.no_grad():
        return float(rounding_error(connection, state, connection.coefficients(state)))


def probed(model, x):
    with Probe(model) as probe:
        model(x).sum().backward()
        probe.step()
    return probe.trace()


def moved(connection, size):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in connection.parameters():
            p.add_(size * torch.randn_like(p))
    return connection


def test_it_is_what_tensors_in_bfloat16_give():
    torch.manual_seed(0)
    connection, state = ByHand(DIM), torch.randn(16, 2, DIM)
    exact = connection.coefficients(state)
    low = connection.made(state.flatten(-2).bfloat16(), connection.weight.bfloat16())
    errors = [((a.float() - b).norm() / b.norm()).item() for a, b in ((low.read, exact.read), (low.write, exact.write))]
    assert measured(connection, state) == pytest.approx(max(errors), rel=0.02)  # sums are in another order
    assert max(errors) > 1.5 * FINISHED


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=NAMES)
def test_every_connection_is_made_again_and_left_as_it_was(kind, options):
    torch.manual_seed(0)
    connection = moved(kind(DIM, **options), 0.5)
    x = torch.randn(5, connection.streams, connection.width)
    before = {name: value.clone() for name, value in connection.state_dict().items()}
    attributes, modules = dict(vars(connection)), list(connection.modules())
    random = torch.get_rng_state()
    error = measured(connection, x)
    assert 0 < error < 0.2
    assert vars(connection) == attributes
    assert list(connection.modules()) == modules
    assert all(torch.equal(before[name], value) for name, value in connection.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in connection.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(levada.IdentityHyperConnection, {}), *[k for k in KINDS if k[0] is levada.ManifoldHyperConnection]],
    ids=lambda value: value.__name__ if isinstance(value, type) else "".join(value.values()),
)
def test_noise_of_large_parameters_is_seen(kind, options):
    torch.manual_seed(0)
    stack = levada.Stack([nn.Linear(DIM, DIM) for _ in range(3)], kind, dim=DIM, **options)
    with torch.no_grad():
        for layer in stack.layers:
            layer.connection.scale.fill_(1.0)
            layer.connection.projection.normal_(0, 2.0)
    errors = probed(stack, torch.randn(5, DIM))["coefficient_rounding"][0, :3]
    assert errors.amin() > 1.25 * FINISHED
    assert errors.amax() > 2 * FINISHED


def test_streams_in_float64_are_measured_too():
    stack = levada.Stack([nn.Linear(DIM, DIM)], ByHand, dim=DIM).double()
    assert probed(stack, torch.randn(5, DIM).double())["coefficient_rounding"][0, 0] > FINISHED


@pytest.mark.parametrize("way", ["random", "buffer"])
def test_what_cannot_be_made_twice_is_not_known_and_nothing_changes(way):
    torch.manual_seed(0)
    stack, x = levada.Stack([nn.Linear(DIM, DIM)], ByHand, dim=DIM), torch.randn(5, DIM)
    connection = stack.layers[0].connection
    connection.way = way
    torch.manual_seed(3)
    expected, count = stack(x), connection.seen.clone()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    connection.seen.zero_()
    made = []
    with Probe(stack) as probe:
        made.append(stack(x))
        assert torch.equal(torch.get_rng_state(), after)
        made[0].sum().backward()
        probe.step()
    assert math.isnan(probe.trace()["coefficient_rounding"][0, 0])
    assert torch.equal(made[0], expected)
    assert torch.equal(connection.seen, count)


def test_hooks_of_modules_inside_do_not_hear_of_it_and_it_is_made_at_the_sampled_tokens():
    stack = levada.Stack([nn.Linear(DIM, DIM)], ByHand, dim=DIM)
    connection = stack.layers[0].connection
    connection.way = "module"
    heard, shapes = [], []
    connection.hidden.register_forward_hook(lambda module, args, out: heard.append(len(args[0])))
    real = ByHand.made
    ByHand.made = lambda self, x, weight: shapes.append(tuple(x.shape)) or real(self, x, weight)
    try:
        trace = probed(stack, torch.randn(300, DIM))
    finally:
        ByHand.made = real
    assert not trace["coefficient_rounding"][0, 0].isnan()
    # To read, to measure, and to write is to read again in a stack that makes them once.
    assert shapes == [(300, 2 * DIM), (MAX_TOKENS, 2 * DIM)]
    assert heard == [300]


def test_a_checkpoint_that_keeps_some_products_gets_its_own_and_not_those_of_the_measurement():
    def save(context, op, *args, **kwargs):
        mine = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
        return CheckpointPolicy.MUST_SAVE if mine else CheckpointPolicy.PREFER_RECOMPUTE

    def gradients(measure):
        torch.manual_seed(0)
        connection, branch = moved(levada.ManifoldHyperConnection(DIM), 0.5), nn.Linear(DIM, DIM)
        state = torch.randn(5, 4, DIM, requires_grad=True)

        def run(x):
            return checkpoint(
                lambda y: connection.advance(connection.advance(y, branch), branch),
                x,
                use_reentrant=False,
                context_fn=lambda: create_selective_checkpoint_contexts(save),
            )

        mixing = Mixing(connection)
        if measure:
            mixing.attach()
            mixing.begin(1)
        run(state).square().sum().backward()
        assert len(mixing.samples) == measure
        mixing.detach()
        return [state.grad, *(p.grad for p in connection.parameters())]

    # What is measured is computed by plain operations, else by one that rounds otherwise; kept products of the
    # measurement, in bfloat16, would be off by 1e-2.
    for expected, got in zip(gradients(False), gradients(True), strict=True):
        assert (expected - got).norm() <= 1e-5 * expected.norm()
