"""Each cell's step against the equation that its docstring gives, written out unit by unit or matrix by matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from levada.cells import GRU, LSTM, RNN, Dilated, Leaky, RecurrentHighway, ResidualInTime
from levada.theory import gate_time_scale

ROWS, DIM_IN, DIM = 2, 3, 4


@pytest.fixture(autouse=True)
def doubles():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def given(count=1):
    return torch.randn(ROWS, DIM_IN), tuple(torch.randn(ROWS, DIM) for _ in range(count))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def affine(cell, x, h):
    """Each block of `W_ih x + b_ih`, and of `W_hh h + b_hh`."""
    fed = x @ cell.weight_ih.T + cell.bias_ih, h @ cell.weight_hh.T + cell.bias_hh
    return [one.split(DIM, -1) for one in fed]


@pytest.mark.parametrize(("nonlinearity", "phi"), [("tanh", torch.tanh), ("relu", lambda x: x.clamp_min(0))])
def test_rnn(nonlinearity, phi):
    cell, (x, (h,)) = RNN(DIM_IN, DIM, nonlinearity=nonlinearity), given()
    (a,), (b,) = affine(cell, x, h)
    torch.testing.assert_close(cell(x, (h,)), (phi(a + b),))


def test_lstm():
    cell, (x, (h, c)) = LSTM(DIM_IN, DIM), given(2)
    i, f, g, o = (a + b for a, b in zip(*affine(cell, x, h), strict=True))
    c_new = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    torch.testing.assert_close(cell(x, (h, c)), (sigmoid(o) * torch.tanh(c_new), c_new))
    torch.testing.assert_close(cell.carry(cell.project(x), (h, c)), sigmoid(f))


def test_gru():
    cell, (x, (h,)) = GRU(DIM_IN, DIM), given()
    (rx, zx, nx), (rh, zh, nh) = affine(cell, x, h)
    r, z = sigmoid(rx + rh), sigmoid(zx + zh)
    n = torch.tanh(nx + r * nh)
    torch.testing.assert_close(cell(x, (h,)), ((1 - z) * n + z * h,))
    torch.testing.assert_close(cell.carry(cell.project(x), (h,)), z)


@pytest.mark.parametrize("depth", [1, 3])
def test_recurrent_highway(depth):
    cell, (x, (s,)) = RecurrentHighway(DIM_IN, DIM, depth=depth), given()
    first, kept = s, 1.0
    nn.init.normal_(cell.bias)
    weight_h, weight_t = cell.weight_ih.split(DIM)
    for layer in range(depth):
        (r_h, r_t), (b_h, b_t) = cell.weight_hh[layer].split(DIM), cell.bias[layer].split(DIM)
        enters = layer == 0
        t = sigmoid(x @ weight_t.T * enters + s @ r_t.T + b_t)
        s = t * torch.tanh(x @ weight_h.T * enters + s @ r_h.T + b_h) + (1 - t) * s
        kept = kept * (1 - t)
    torch.testing.assert_close(cell(x, (first,)), (s,))
    torch.testing.assert_close(cell.carry(cell.project(x), (first,)), kept)


def test_leaky():
    inner, (x, (h, c)) = LSTM(DIM_IN, DIM), given(2)
    h_new, c_new = inner(x, (h, c))
    torch.testing.assert_close(Leaky(inner, 0.3)(x, (h, c)), (0.7 * h + 0.3 * h_new, c_new))
    assert torch.equal(Leaky(inner, 1)(x, (h, c))[0], h_new), "at a rate of 1 nothing is left of the skip"


def test_residual_in_time():
    inner, (x, (h, c)) = LSTM(DIM_IN, DIM), given(2)
    h_new, c_new = inner(x, (h, c))
    torch.testing.assert_close(ResidualInTime(inner, 0.3)(x, (h, c)), (h + 0.3 * h_new, c_new))


@pytest.mark.parametrize("dilation", [1, 2, 5])
def test_dilated(dilation):
    inner, x = LSTM(DIM_IN, DIM), torch.randn(12, ROWS, DIM_IN)
    cell = Dilated(inner, dilation)
    states = [tuple(torch.randn(ROWS, DIM) for _ in range(2)) for _ in range(dilation)]  # the oldest first
    newest, before = states[-1], [torch.stack([s[i] for s in states[:-1]], 1) for i in range(2) if dilation > 1]
    ours, last = cell.run(x, (*newest, *before))
    for t in range(12):
        states.append(inner(x[t], states[t]))  # of `dilation` steps ago
        torch.testing.assert_close(ours[t], states[-1][0])
    torch.testing.assert_close(last[:2], states[-1])
    for i, one in enumerate(last[2:]):
        torch.testing.assert_close(one, torch.stack([s[i] for s in states[-dilation:-1]], 1))


@pytest.mark.parametrize(("bias", "steps"), [(0, 1.4), (1, 3.2), (3, 20.6)])
def test_what_a_forget_bias_lasts(bias, steps):
    cell = LSTM(DIM_IN, DIM, forget_bias=bias)
    nn.init.zeros_(cell.weight_hh)
    kept = cell.carry(cell.project(torch.zeros(1, DIM_IN)), cell.begin(1, dtype=torch.float64))
    torch.testing.assert_close(-1 / kept.log(), torch.full((1, DIM), gate_time_scale(bias)))
    assert round(gate_time_scale(bias), 1) == steps


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        (LSTM(DIM_IN, DIM), 4 * DIM * (DIM_IN + DIM + 2)),
        (GRU(DIM_IN, DIM), 3 * DIM * (DIM_IN + DIM + 2)),
        (RNN(DIM_IN, DIM), DIM * (DIM_IN + DIM + 2)),
        (RecurrentHighway(DIM_IN, DIM, depth=5), 2 * DIM * (DIM_IN + 5 * (DIM + 1))),
    ],
)
def test_what_they_cost(cell, count):
    assert sum(p.numel() for p in cell.parameters()) == count
