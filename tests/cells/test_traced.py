"""Where values cannot be seen: fake tensors, `make_fx`, `torch.compile` and `torch.func`."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from levada._errors import UsageError
from levada.cells import GRU, LSTM, RNN, Dilated, MinGRU, Recurrent, RecurrentHighway

CELLS = {
    "LSTM": lambda d: LSTM(d, 4),
    "GRU": lambda d: GRU(d, 4),
    "RNN": lambda d: RNN(d, 4),
    "RecurrentHighway": lambda d: RecurrentHighway(d, 4),
    "MinGRU": lambda d: MinGRU(d, 4),
    "Dilated": lambda d: Dilated(LSTM(d, 4), 2),
}
LENGTHS = [3, 6, 1]
every_cell = pytest.mark.parametrize("name", CELLS)


def build(name="LSTM", **options):
    torch.manual_seed(0)
    return Recurrent(CELLS[name], dim_in=3, **options), torch.randn(6, 3, 3)


@every_cell
def test_fake_tensors(name):
    with FakeTensorMode():
        net, x = build(name, bidirectional=True)
        y, states = net(x)
        assert (y.shape, len(states)) == ((6, 3, 8), 2)
        assert net.cells[0](x[0])[0].shape == (3, 4)
        assert net(x, lengths=torch.tensor(LENGTHS))[0].shape == (6, 3, 8)
        with pytest.raises(UsageError, match="must be of floating point"):
            net(x.long())


@pytest.mark.parametrize("mode", ["fake", "symbolic", "real"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "RecurrentHighway", "Dilated"])
def test_make_fx(name, mode):
    net, x = build(name)
    held = {key: value.detach() for key, value in net.named_parameters()}
    graph = make_fx(lambda held, x: functional_call(net, held, (x,))[0], tracing_mode=mode)(held, x)
    torch.testing.assert_close(graph(held, x), net(x)[0])


def test_what_is_not_finite_is_still_named_outside_of_a_trace():
    net, x = build()
    with torch.no_grad():
        net.cells[0].weight_hh[0, 0] = float("nan")
    with pytest.raises(UsageError, match="1 of 64 numbers in weight_hh"):
        net(x)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"truncate": 2}], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "Dilated"])
def test_lengths_in_a_tensor_are_no_part_of_what_is_compiled(name, options):
    net, x = build(name, **options)
    x[3:, 0] = float("nan")
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for lengths in (LENGTHS, [2, 5, 6]):
        expected, found = net(x, lengths=lengths), compiled(x, lengths=torch.tensor(lengths))
        torch.testing.assert_close(found, expected)
        grads = [
            torch.autograd.grad(y.square().sum() + sum(s.sum() for one in states for s in one), list(net.parameters()))
            for y, states in (expected, found)
        ]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    torch.testing.assert_close(compiled(x, lengths=torch.tensor([3, 99, -1])), net(x, lengths=[3, 6, 1]))


def test_lengths_that_are_not_seen_but_cannot_be_are_said():
    net, x = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for bad in (torch.tensor([3, 2]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True] * 3)):
            with pytest.raises(UsageError, match=r"lengths must be 3 integers from 1 to 6.*, got \(\d,\) of torch"):
                net(x, lengths=bad)


def test_lengths_side_by_side():
    net, x = build()
    lengths = torch.tensor([LENGTHS, [6, 2, 2]])
    y = torch.vmap(lambda n: net(x, lengths=n)[0])(lengths)
    for one, n in zip(y, lengths.tolist(), strict=True):
        torch.testing.assert_close(one, net(x, lengths=n)[0])
