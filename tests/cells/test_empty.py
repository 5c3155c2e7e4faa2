"""A batch without rows goes through as it does through torch.nn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import levada
from levada.cells import GRU, LSTM, RNN, Dilated, Leaky, MinGRU, MinLSTM, Recurrent, RecurrentHighway, ResidualInTime

CELLS = {
    "LSTM": lambda d: LSTM(d, 4),
    "GRU": lambda d: GRU(d, 4),
    "RNN": lambda d: RNN(d, 4),
    "RecurrentHighway": lambda d: RecurrentHighway(d, 4),
    "MinGRU": lambda d: MinGRU(d, 4),
    "MinLSTM": lambda d: MinLSTM(d, 4),
    "Dilated": lambda d: Dilated(LSTM(d, 4), 3),
    "Leaky": lambda d: Leaky(Dilated(GRU(d, 4), 2), 0.5),
    "ResidualInTime": lambda d: ResidualInTime(RNN(d, 4)),
}


@pytest.mark.parametrize("lengths", [None, [], torch.tensor([], dtype=torch.long)], ids=["none", "list", "tensor"])
@pytest.mark.parametrize(
    "options", [{}, {"truncate": 2}, {"bidirectional": True}, {"batch_first": True}, {"connection": levada.Residual}]
)
@pytest.mark.parametrize("name", CELLS)
def test_no_rows(name, options, lengths):
    net = Recurrent(CELLS[name], dim_in=4, depth=2, **options)
    x = torch.zeros((0, 7, 4) if net.batch_first else (7, 0, 4), requires_grad=True)
    for states in (None, net.begin(0)):
        y, last = net(x, states, lengths=lengths)
        assert y.shape == (*x.shape[:2], net.dim_out)
        assert [[s.shape for s in one] for one in last] == [[s.shape for s in one] for one in net.begin(0)]
        y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_as_torch_does(kind):
    module, x = kind(3, 4, num_layers=2, bidirectional=True), torch.zeros(5, 0, 3)
    assert Recurrent.from_torch(module)(x)[0].shape == module(x)[0].shape


@pytest.mark.parametrize("name", CELLS)
def test_one_step_without_rows(name):
    cell = CELLS[name](3)
    assert [s.shape for s in cell(torch.zeros(0, 3))] == [s.shape for s in cell.begin(0)]
