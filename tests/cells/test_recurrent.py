"""Cells over time: against torch.nn, row by row, and against what cannot be."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import levada.connections
from levada import Residual
from levada._errors import UsageError
from levada.cells import GRU, LSTM, RNN, Dilated, Leaky, Recurrent, detach
from levada.connection import Connection

KINDS = {
    "LSTM": (LSTM, nn.LSTM, {}),
    "GRU": (GRU, nn.GRU, {}),
    "RNN": (RNN, nn.RNN, {}),
    "relu": (functools.partial(RNN, nonlinearity="relu"), nn.RNN, {"nonlinearity": "relu"}),
}
LENGTHS = [6, 9, 1, 4, 9]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs_of(state):
    """States of a module of torch.nn, in our form."""
    tensors = state if isinstance(state, tuple) else (state,)
    return tuple(zip(*(t.unbind(0) for t in tensors), strict=True))


def gradients(y, states, inputs):
    total = y.mul(y.detach().cos()).sum() + sum((s * (s.detach() + 1).sin()).sum() for state in states for s in state)
    return torch.autograd.grad(total, inputs, retain_graph=True)  # what packs a sequence is in both graphs


def in_torchs_order(net):
    """Our parameters in the order of torch.nn's."""
    return [
        getattr(c, n) for c in net.cells for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if c.bias or "w" in n
    ]


@pytest.mark.parametrize("form", ["whole", "packed", "sorted"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 3, "bidirectional": True}, {"bias": False, "batch_first": True}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients_are_torchs(kind, options, form):
    torch.manual_seed(0)
    twin = KINDS[kind][1](3, 5, **options, **KINDS[kind][2]).double()
    net = Recurrent.from_torch(twin)
    first, batch_first = not options.get("batch_first"), options.get("batch_first", False)
    x = (random(9, 5, 3) if first else random(5, 9, 3)).requires_grad_()
    lengths = torch.tensor(sorted(LENGTHS, reverse=True) if form == "sorted" else LENGTHS)
    count = len(net.cells)
    start = [random(count, 5, 5, seed=i).requires_grad_() for i in range(2 if kind == "LSTM" else 1)]
    given = x
    if form != "whole":
        given = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=form == "sorted")
    expected, last = twin(given, tuple(start) if kind == "LSTM" else start[0])
    ours, states = net(given, theirs_of(tuple(start)))
    if form != "whole":
        assert torch.equal(ours.batch_sizes, expected.batch_sizes)
        torch.testing.assert_close(ours.data, expected.data, rtol=1e-10, atol=1e-10)
        ours, expected = (pad_packed_sequence(one, batch_first=batch_first)[0] for one in (ours, expected))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(states, theirs_of(last), rtol=1e-10, atol=1e-10)
    found = gradients(ours, states, [x, *start, *in_torchs_order(net)])
    wanted = gradients(expected, theirs_of(last), [x, *start, *twin.parameters()])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3}])
def test_to_torch_and_back(kind, options):
    twin = KINDS[kind][1](3, 5, **options, **KINDS[kind][2]).eval()
    twin.weight_hh_l0.requires_grad_(False)
    net = Recurrent.from_torch(twin)
    back = net.to_torch()
    assert type(back) is type(twin)
    assert repr(back) == repr(twin)
    assert not back.training
    assert not net.training
    for (name, a), (other, b) in zip(twin.named_parameters(), back.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad
    with torch.no_grad():
        twin.weight_ih_l0.zero_()
    assert net.cells[0].weight_ih.abs().sum() > 0, "the weights are copied"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: nn.LSTM(3, 5, proj_size=2), "must have no projections, got proj_size=2"),
        (lambda: nn.Linear(3, 5), "must be an nn.LSTM, nn.GRU or nn.RNN, got Linear"),
    ],
)
def test_what_cannot_come_from_torch(module, message):
    with pytest.raises(UsageError, match=message):
        Recurrent.from_torch(module())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: Recurrent([LSTM(3, 5), GRU(5, 5)]), "alike and of one width, got GRU of 5, LSTM of 5"),
        (lambda: Recurrent([LSTM(3, 5), LSTM(5, 4)]), "alike and of one width"),
        (lambda: Recurrent([Dilated(LSTM(3, 5), 2)]), "got Dilated of 5"),
        (lambda: Recurrent([GRU(5, 5)], connection=Residual), "without a connection"),
        (lambda: Recurrent([GRU(5, 5)], truncate=3), "without truncate"),
    ],
)
def test_what_torch_does_not_have(net, message):
    with pytest.raises(UsageError, match=message):
        net().to_torch()


# --- lengths


CELLS = {
    "LSTM": lambda d: LSTM(d, 4),
    "GRU": lambda d: GRU(d, 4),
    "dilated": lambda d: Dilated(LSTM(d, 4), 3),
    "leaky": lambda d: Leaky(RNN(d, 4), 0.3),
}


@pytest.mark.parametrize("padding", [0.0, float("nan")])
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_each_row_is_what_it_would_be_alone(name, connected, padding):
    torch.manual_seed(0)
    options = {"dim_in": 4, "connection": Residual} if connected else {"dim_in": 3, "bidirectional": True}
    net = Recurrent(CELLS[name], depth=2, **options).double()
    x = random(9, 5, net.dim_in)
    for row, n in enumerate(LENGTHS):
        x[n:, row] = padding
    x.requires_grad_()
    start = tuple(tuple(random(*s.shape, seed=i) for i, s in enumerate(state)) for state in net.begin(5))
    y, states = net(x, start, lengths=torch.tensor(LENGTHS))
    for row, n in enumerate(LENGTHS):
        alone, last = net(x[:n, row : row + 1], tuple(tuple(s[row : row + 1] for s in one) for one in start))
        torch.testing.assert_close(y[:n, row], alone[:, 0], rtol=1e-11, atol=1e-12)
        assert not y[n:, row].any()
        ours = tuple(tuple(s[row : row + 1] for s in state) for state in states)
        torch.testing.assert_close(ours, last, rtol=1e-11, atol=1e-12)
    (gradient,) = torch.autograd.grad(y.square().sum() + sum(s.sum() for one in states for s in one), x)
    for row, n in enumerate(LENGTHS):
        assert not gradient[n:, row].any(), "padding has no gradient"
        assert gradient[:n, row].abs().sum(-1).gt(0).all()
    assert gradient.isfinite().all()


def test_the_reverse_direction_starts_at_the_last_real_element():
    torch.manual_seed(0)
    net, x = Recurrent(lambda d: GRU(d, 4), dim_in=3, bidirectional=True).double(), random(9, 5, 3)
    y, states = net(x, lengths=LENGTHS)
    backward = net.cells[1]
    for row, n in enumerate(LENGTHS):
        outputs, (h,) = backward.run(x[:n, row : row + 1].flip(0))
        torch.testing.assert_close(y[:n, row, 4:], outputs[:, 0].flip(0))
        torch.testing.assert_close(states[1][0][row], h[0])


def test_lengths_cost_no_step_that_a_row_does_not_have():
    net, x = Recurrent(lambda d: GRU(d, 4), dim_in=3), torch.randn(9, 5, 3)
    seen = []
    cell = net.cells[0]
    run = cell.run
    cell.run = lambda x, state: seen.append(x.shape[0] * x.shape[1]) or run(x, state)
    net(x, lengths=LENGTHS)
    assert sum(seen) == sum(LENGTHS)


# --- what is carried


def test_truncation_cuts_gradients_and_nothing_else():
    torch.manual_seed(0)
    net, x = Recurrent(lambda d: LSTM(d, 4), dim_in=3, depth=2).double(), random(10, 2, 3).requires_grad_()
    cut = copy.deepcopy(net)
    for layer in cut.layers:
        layer.truncate = 4
    for lengths in (None, [10, 7]):
        torch.testing.assert_close(cut(x, lengths=lengths), net(x, lengths=lengths))
    (gradient,) = torch.autograd.grad(cut(x)[0][7].sum(), x)
    assert not gradient[:4].any()
    assert gradient[4:8].abs().sum((1, 2)).gt(0).all()
    # by hand: pieces, between which the state is detached, layer by layer
    state, outputs = None, []
    for piece in x.split(4):
        y, state = net(piece, state)
        state = detach(state)
        outputs.append(y)
    by_hand = torch.autograd.grad(torch.cat(outputs).square().sum(), list(net.parameters()))
    found = torch.autograd.grad(cut(x)[0].square().sum(), list(cut.parameters()))
    torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=1e-12)


def test_truncate_is_an_argument():
    net = Recurrent(lambda d: GRU(d, 4), dim_in=3, truncate=4)
    assert net.layers[0].truncate == 4
    x = torch.randn(10, 2, 3, requires_grad=True)
    net(x)[0][-1].sum().backward()
    assert not x.grad[:8].any()


def test_detached_states_have_no_past():
    states = Recurrent(lambda d: LSTM(d, 4), dim_in=3, depth=2)(torch.randn(4, 2, 3))[1]
    cut = detach(states)
    assert all(s.requires_grad for state in states for s in state)
    assert not any(s.requires_grad for state in cut for s in state)
    torch.testing.assert_close(cut, tuple(tuple(s.detach() for s in state) for state in states))


def test_dropout_is_between_layers_and_in_training_alone():
    torch.manual_seed(0)
    net, x = Recurrent(lambda d: GRU(d, 4), dim_in=3, depth=2, dropout=0.5), torch.randn(4, 2, 3)
    assert not torch.equal(net(x)[0], net(x)[0])
    assert torch.equal(net(x)[1][0][0], net(x)[1][0][0]), "the first layer reads all"
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


# --- connections between layers


def connections():
    named = vars(levada.connections).items()
    return {n: c for n, c in named if isinstance(c, type) and issubclass(c, Connection) and not inspect.isabstract(c)}


OPTIONS = {
    "LearnedAugmentedResidual": {"rank": 2},
    "SparseHyperConnection": {"streams": 6, "active": 3, "fixed": 1},
    "Dense": {"growth": 4},
    "Momentum": {"recompute": False},
    "Reversible": {"recompute": False},
}


@pytest.mark.parametrize("name", [name for name in connections() if name != "ValueResidual"])  # cells have no values
def test_every_connection_of_the_library_connects_layers(name):
    torch.manual_seed(0)
    options = OPTIONS.get(name, {})
    width = options.get("growth")
    net = Recurrent(lambda d: GRU(d, width or d), dim_in=4, depth=3, connection=connections()[name], **options)
    with torch.no_grad():
        for parameter in net.parameters():  # off a start at which zeros stay zeros
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(6, 3, 4)
    x[2:, 1] = float("nan")
    x.requires_grad_()
    y, states = net.eval()(x, lengths=[6, 2, 5])
    assert y.shape == (6, 3, net.dim_out)
    assert len(states) == 3
    assert not y[2:, 1].any()
    y.square().sum().backward()
    assert x.grad[:2, 1].abs().sum() > 0
    assert not x.grad[2:, 1].any()
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert all(parameter.grad is not None for cell in net.cells for parameter in cell.parameters())


def test_residual_layers_are_added_to_the_stream():
    torch.manual_seed(0)
    net, x = Recurrent(lambda d: GRU(d, 4), dim_in=4, depth=2, connection=Residual), torch.randn(6, 3, 4)
    a, b = net.cells
    h = x + a.run(x)[0]
    torch.testing.assert_close(net(x)[0], h + b.run(h)[0])


def test_checkpointed_layers_give_the_same_gradients():
    torch.manual_seed(0)
    net = Recurrent(lambda d: GRU(d, 4), dim_in=4, depth=4, connection=Residual, checkpoint=2).double()
    x, grads = random(6, 3, 4), []
    for segments in (0, 2):
        net.layers.segments = segments
        y, states = net(x)
        grads.append(torch.autograd.grad(y.square().sum() + states[0][0].sum(), list(net.parameters())))
    torch.testing.assert_close(*grads)


# --- around


def test_batch_first_and_the_order_of_states():
    torch.manual_seed(0)
    net = Recurrent(lambda d: LSTM(d, 4), dim_in=3, depth=2, bidirectional=True, batch_first=True)
    x = torch.randn(2, 6, 3)
    y, states = net(x)
    net.batch_first = False
    torch.testing.assert_close(net(x.transpose(0, 1)), (y.transpose(0, 1), states))
    assert torch.equal(states[2][0], y[:, -1, :4])
    assert torch.equal(states[3][0], y[:, 0, 4:])
    assert net.dim_out == 8
    assert len(net.begin(2)) == len(net.cells) == 4


def test_given_cells_are_the_layers():
    cells = [Dilated(GRU(3, 4), 1), Dilated(GRU(4, 4), 2), Dilated(GRU(4, 6), 4)]
    net = Recurrent(cells)
    assert (net.cells, net.dim_in, net.dim_out) == (tuple(cells), 3, 6)


def test_whole_nets_compile_export_and_save():
    torch.manual_seed(0)
    net = Recurrent(lambda d: LSTM(d, 4), dim_in=3, depth=2, bidirectional=True).eval()
    x = torch.randn(5, 2, 3)
    y = net(x)[0]
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], y, rtol=1e-5, atol=1e-6)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x)[0], y, rtol=1e-5, atol=1e-6)
    other = Recurrent(lambda d: LSTM(d, 4), dim_in=3, depth=2, bidirectional=True)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x)[0], y)


def gru(d):
    return GRU(d, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recurrent(gru), "dim_in must be given to a function that makes cells, got None"),
        (lambda: Recurrent(gru, dim_in=0), "dim_in must be at least 1, got 0"),
        (lambda: Recurrent(gru, dim_in=3, depth=0), "depth must be at least 1, got 0"),
        (lambda: Recurrent(gru, dim_in=3, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Recurrent(gru, dim_in=3, truncate=0), "truncate must be at least 1, got 0"),
        (lambda: Recurrent(gru, dim_in=3, streams=2), "streams are options of a connection, and connection is None"),
        (lambda: Recurrent([]), "cells in a list"),
        (lambda: Recurrent([nn.GRUCell(3, 4)]), "cells in a list"),
        (lambda: Recurrent(lambda d: nn.GRUCell(d, 4), dim_in=3), "cell must make a Cell, got GRUCell"),
        (lambda: Recurrent([GRU(3, 4), GRU(3, 4)]), "cells of layer 1 must read a width of 4, got 3"),
        (lambda: Recurrent([GRU(3, 4)], bidirectional=True), "2 cell.s. for each layer"),
        (lambda: Recurrent([GRU(3, 4)], depth=2), "got 1 cells and depth=2"),
        (lambda: Recurrent([GRU(4, 4)] * 2), "one is there twice"),
        (lambda: Recurrent([GRU(3, 4)], dim_in=5), "the width that the first cell reads, 3, got 5"),
        (
            lambda: Recurrent(gru, dim_in=3, connection=Residual),
            "layer 0 must give out a width of 3, which it reads from the stream, got 4",
        ),
        (lambda: Recurrent(gru, dim_in=4, connection=Residual, streams=2), "streams"),
    ],
)
def test_arguments_that_cannot_be_are_said(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


X = torch.zeros(6, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(torch.zeros(0, 3, 4)), r"must have a step or more, got \(0, 3, 4\)"),
        (lambda net: net(torch.zeros(6, 4)), r"must be \(steps, batch, dim_in\), got \(6, 4\)"),
        (lambda net: net(torch.zeros(6, 3, 5)), r"dim_in 4, got \(6, 3, 5\)"),
        (lambda net: net(X, lengths=[6, 3]), r"lengths must be 3 integers from 1 to 6, one for each row, got \[6, 3\]"),
        (lambda net: net(X, lengths=[6, 3, 7]), r"from 1 to 6.*got \[6, 3, 7\]"),
        (lambda net: net(X, lengths=[6, 3, 0]), r"from 1 to 6.*got \[6, 3, 0\]"),
        (lambda net: net(X, lengths=torch.tensor([6, 3, 2.5])), "from 1 to 6"),
        (lambda net: net(X, lengths=torch.tensor(3)), "lengths must be 3 integers"),
        (lambda net: net(pack_padded_sequence(X, [6, 3, 3]), lengths=[6, 3, 3]), "lengths are given"),
        (lambda net: net(X, net.begin(2)), r"states must be a state for each of 2 cells.*\(3, 4\).*got.*\(2, 4\)"),
        (lambda net: net(X, net.begin(3)[:1]), "states must be a state for each of 2 cells"),
        (lambda net: net(X, torch.zeros(2, 3, 4)), "states must be a state for each of 2 cells.*got Tensor"),
    ],
)
def test_calls_that_cannot_be_are_said(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call(Recurrent(gru, dim_in=4, depth=2))
    assert "\n" not in str(caught.value)
