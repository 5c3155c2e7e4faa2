"""Memory curves, gates and Lyapunov exponents against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from levada._errors import MeasurementError, UsageError
from levada.initialise import chrono, orthogonal_recurrence
from levada.probe import gate_statistics, input_gradients, lyapunov_exponents, memory_curves, recurrences
from levada.theory import gate_time_scale, memory_horizon, time_scale

DIM = 24


def linear_rnn(matrix, bias=False):
    """An RNN that is linear: rectifiers, of which every unit is held far above zero by the inputs."""
    rnn = nn.RNN(1, len(matrix), nonlinearity="relu", bias=bias)
    rnn.weight_hh_l0.data.copy_(matrix)
    rnn.weight_ih_l0.data.fill_(1.0)
    return rnn


def measure(module, x, **how):
    return memory_curves(module, lambda: module(x), **how)


@pytest.mark.parametrize(("rho", "tau", "horizon"), [(0.5, 1.44, 10.0), (3**-0.5, 1.82, 12.6), (0.9, 9.49, 65.6)])
def test_a_linear_recurrence_forgets_by_its_factor(rho, tau, horizon):
    rnn = linear_rnn(rho * torch.eye(DIM))
    (memory,) = measure(rnn, torch.ones(80, 3, 1))
    torch.testing.assert_close(memory.curve, rho ** torch.arange(81.0).double(), rtol=1e-5, atol=0.0)
    assert memory.tau == pytest.approx(time_scale(rho), rel=1e-4) == pytest.approx(tau, abs=0.01)
    assert memory.horizon.value == pytest.approx(memory_horizon(rho), rel=1e-3) == pytest.approx(horizon, abs=0.1)
    assert memory.reached
    assert memory.horizon.low <= memory.horizon.value <= memory.horizon.high


def test_a_horizon_beyond_the_sequence_is_extrapolated():
    (memory,) = measure(linear_rnn(0.99 * torch.eye(DIM)), torch.ones(50, 3, 1))
    assert not memory.reached
    assert memory.horizon.value == pytest.approx(687, abs=1)


def test_an_orthogonal_recurrence_forgets_nothing():
    rnn = orthogonal_recurrence(nn.RNN(1, DIM, bias=False), generator=torch.Generator().manual_seed(0))
    rnn.weight_ih_l0.data.zero_()  # tanh of zero has slope one
    (memory,) = measure(rnn, torch.ones(40, 3, 1))
    torch.testing.assert_close(memory.curve, torch.ones(41).double(), rtol=1e-5, atol=0.0)
    assert memory.horizon.value > 1e5


def test_the_curve_is_the_norm_of_the_jacobian():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 5).double(), torch.randn(6, 1, 3).double()
    lstm.weight_hh_l0.data.mul_(4.0)  # so that what a cell does through the hidden state is not small

    def rest(state):  # the last three steps
        h, c = state[None, None, :5], state[None, None, 5:]
        return torch.cat([s.flatten() for s in lstm(x[3:], (h.contiguous(), c.contiguous()))[1]])

    start = torch.cat([s.flatten() for s in lstm(x[:3])[1]])
    expected = torch.autograd.functional.jacobian(rest, start).norm() / math.sqrt(10)
    (memory,) = measure(lstm, x, cotangents=4000)
    assert memory.curve[3].item() == pytest.approx(expected.item(), rel=0.03)
    whole = (memory.parts["h"].square() + memory.parts["c"].square()).sqrt()
    torch.testing.assert_close(whole, memory.curve)


@pytest.mark.parametrize("bias", [0.0, 1.0, 3.0])
def test_a_cell_keeps_what_its_forget_gate_keeps(bias):
    lstm = nn.LSTM(2, DIM)
    for name, p in lstm.named_parameters():
        p.data.zero_() if name != "weight_ih_l0" else p.data.normal_()
    lstm.weight_ih_l0.data[DIM : 2 * DIM] = 0.0
    lstm.bias_ih_l0.data[DIM : 2 * DIM] = bias
    x = torch.randn(60, 4, 2)
    (memory,) = measure(lstm, x)
    assert memory.tau == pytest.approx(gate_time_scale(bias), rel=1e-4)
    factors = memory.parts["c"][2:20] / memory.parts["c"][1:19]
    torch.testing.assert_close(factors, torch.full((18,), 1 / (1 + math.exp(-bias))).double(), rtol=1e-5, atol=0.0)
    assert memory.gates.gate == "forget gate"
    assert memory.gates.mean == pytest.approx(1 / (1 + math.exp(-bias)), rel=1e-5)
    assert memory.gates.time_scales[0.5] == pytest.approx(gate_time_scale(bias), rel=1e-4)
    assert memory.horizon_predicted == pytest.approx(-math.log(1e-3) * gate_time_scale(bias), rel=1e-2)


@pytest.mark.parametrize(("kind", "horizon"), [(nn.RNN, memory_horizon(3**-0.5)), (nn.LSTM, 10.0), (nn.GRU, 10.0)])
def test_what_torch_draws_remembers_about_ten_steps(kind, horizon):
    torch.manual_seed(0)
    module = kind(4, 128)
    (memory,) = measure(module, torch.randn(50, 8, 4))
    assert 0.75 * horizon < memory.horizon.value < 1.5 * horizon
    # gates alone: the same recurrent weights at every step add up to a little more
    assert 0.7 * memory.horizon.value < memory.horizon_predicted < 1.1 * memory.horizon.value


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"batch_first": True},
        {"bias": False},
        {"num_layers": 2, "dropout": 0.5},
    ],
)
def test_every_layer_is_run_again_as_it_ran(kind, options):
    torch.manual_seed(0)
    module = kind(3, 7, **options)
    found, missing = recurrences(module, lambda: module(torch.randn(9, 5, 3)))
    assert not missing
    assert len(found) == options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    assert {one.steps for one in found} == ({5} if options.get("batch_first") else {9})
    assert module.training


def test_a_module_that_computes_something_else_is_not_followed():
    class Doubled(nn.GRU):
        def forward(self, x, hx=None):
            out, h = super().forward(x, hx)
            return 2 * out, h

    module = Doubled(3, 7)
    found, missing = recurrences(module, lambda: module(torch.randn(9, 5, 3)))
    assert found == []
    assert "do not give what it returns" in missing[""]
    with pytest.raises(MeasurementError, match="do not give what it returns"):
        measure(module, torch.randn(9, 5, 3))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_rows_of_a_packed_sequence_are_followed_from_their_own_ends(bidirectional):
    torch.manual_seed(0)
    module = nn.GRU(3, 7, bidirectional=bidirectional)
    x, lengths = torch.randn(12, 3, 3), [5, 12, 8]
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    together, _ = recurrences(module, lambda: module(packed))
    for row, length in enumerate(lengths):
        alone, _ = recurrences(module, lambda n=row, m=length: module(x[:m, n : n + 1]))
        for one, other in zip(together, alone, strict=True):
            state, expected = one.initial, other.initial
            for t in range(12):
                state = one.step(t, state)
            for t in range(length):
                expected = other.step(t, expected)
            torch.testing.assert_close(state[0][row], expected[0][0])


def test_steps_back_are_counted_from_the_end_of_each_row():
    rnn = linear_rnn(0.5 * torch.eye(DIM))
    packed = pack_padded_sequence(torch.ones(12, 3, 1), [5, 12, 8], enforce_sorted=False)
    (memory,) = memory_curves(rnn, lambda: rnn(packed))
    torch.testing.assert_close(memory.curve, 0.5 ** torch.arange(13.0).double(), rtol=1e-5, atol=0.0)


class Loop(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in x:
            state = self.cell(step, state)
        return state if isinstance(state, torch.Tensor) else state[0]


@pytest.mark.parametrize(("cell", "layer"), [(nn.RNNCell, nn.RNN), (nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU)])
def test_a_cell_in_a_loop_is_the_layer(cell, layer):
    torch.manual_seed(0)
    loop, whole, x = Loop(cell(3, 7)), layer(3, 7), torch.randn(15, 16, 3)
    for (_, p), (_, q) in zip(loop.cell.named_parameters(), whole.named_parameters(), strict=True):
        q.data.copy_(p)
    (one,), (other,) = measure(loop, x), measure(whole, x)
    assert one.site == "cell"
    assert one.steps == other.steps - 1  # the first call has no state to be given
    torch.testing.assert_close(one.curve[:10], other.curve[:10], rtol=1e-4, atol=1e-7)
    if one.gates is not None:
        assert one.gates.mean == pytest.approx(other.gates.mean, abs=0.01)


def test_a_layer_that_is_called_step_by_step_is_one_sequence():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 7), torch.randn(10, 4, 3)

    def stepwise():
        state = None
        for step in x:
            _, state = lstm(step[None], state)

    (one,), (other,) = memory_curves(lstm, stepwise), measure(lstm, x)
    torch.testing.assert_close(one.curve, other.curve)


class OwnCell(nn.Module):
    """h' = rho h + W x, with the state first and in a mapping."""

    def __init__(self, rho):
        super().__init__()
        self.rho, self.read = rho, nn.Linear(3, DIM)

    def forward(self, states, x):
        return {"h": self.rho * states["h"] + self.read(x)}


def test_any_cell_is_followed():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = OwnCell(0.8)

        def forward(self, x):
            states = {"h": torch.zeros(4, DIM)}
            for step in x:
                states = self.cell(states, step)
            return states["h"]

    model, x = Own(), torch.randn(12, 4, 3)
    (memory,) = measure(model, x)
    torch.testing.assert_close(memory.curve, 0.8 ** torch.arange(12.0).double(), rtol=1e-5, atol=0.0)
    assert memory.predicted is None


def test_weights_shared_over_depth_are_no_memory():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Bilinear(5, 5, 5)

        def forward(self, x):
            h = x
            for _ in range(8):
                h = self.block(h, x)
            return h

    model = Tied()
    found, missing = recurrences(model, lambda: model(torch.randn(4, 5)))
    assert (found, missing) == ([], {})
    with pytest.raises(MeasurementError, match="has no recurrence"):
        measure(model, torch.randn(4, 5))


def tanh_network(g, seed):
    """The recurrence of 200 units without inputs, and its matrix."""
    generator = torch.Generator().manual_seed(seed)
    rnn = nn.RNN(1, 200, bias=False)
    rnn.weight_hh_l0.data.normal_(0.0, g / math.sqrt(200), generator=generator)
    start = torch.randn(1, 2, 200, generator=generator)
    found, _ = recurrences(rnn, lambda: rnn(torch.zeros(600, 2, 1), start))
    return found[0], rnn.weight_hh_l0.detach()


# The theory's golden values are of one network each; between networks of 200 units the exponent scatters by 0.03.
@pytest.mark.parametrize(("g", "expected"), [(0.5, -0.662), (0.9, -0.079), (1.0, -0.002), (1.5, 0.047), (2.0, 0.158)])
def test_exponents_of_random_tanh_networks(g, expected):
    found = [lyapunov_exponents(tanh_network(g, seed)[0]) for seed in range(4)]
    values = [float(one.values[0]) for one in found]
    assert sum(values) / 4 == pytest.approx(expected, abs=0.05)
    assert all(0 <= float(one.errors[0]) < 0.01 for one in found)


@pytest.mark.parametrize("g", [0.5, 0.9])
def test_at_rest_the_largest_exponent_is_that_of_the_matrix(g):
    recurrence, matrix = tanh_network(g, 0)
    largest = torch.linalg.eigvals(matrix.double()).abs().max().log().item()
    assert lyapunov_exponents(recurrence, count=2).values[0].item() == pytest.approx(largest, abs=0.01)


def test_exponents_of_a_diagonal_network_are_its_factors():
    matrix = torch.diag(torch.tensor([0.9, 0.6, 0.3]))
    rnn = linear_rnn(matrix)
    found, _ = recurrences(rnn, lambda: rnn(torch.ones(80, 2, 1)))
    exponents = lyapunov_exponents(found[0], count=3, warmup=40)
    torch.testing.assert_close(exponents.values.exp().float(), matrix.diagonal(), rtol=1e-4, atol=0.0)
    with pytest.raises(UsageError, match="at most the size of the state, 3, got 4"):
        lyapunov_exponents(found[0], count=4)
    with pytest.raises(UsageError, match="must leave a step"):
        lyapunov_exponents(found[0], warmup=80)


def test_exponents_of_a_cell():
    torch.manual_seed(0)
    loop = Loop(nn.GRUCell(3, 7))
    found, _ = recurrences(loop, lambda: loop(torch.randn(30, 4, 3)))
    assert -1.5 < lyapunov_exponents(found[0]).values[0].item() < -0.1


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_at_the_inputs_of_each_step(packed):
    torch.manual_seed(0)
    rnn, x = linear_rnn(0.5 * torch.eye(DIM)), torch.ones(10, 4, 1)
    given = pack_padded_sequence(x, [10] * 4) if packed else x
    found, _ = recurrences(rnn, lambda: rnn(given))
    arrival = input_gradients(rnn, lambda: rnn(given)[1].sum(), found)[""]
    torch.testing.assert_close(arrival, DIM * 0.5 ** torch.arange(9.0, -1.0, -1.0).double())


def test_the_memory_that_chrono_sets_is_as_long_as_the_sequence():
    torch.manual_seed(0)
    lstm = chrono(nn.LSTM(3, 64), 200.0)
    found, _ = recurrences(lstm, lambda: lstm(torch.randn(100, 4, 3)))
    assert gate_statistics(found[0]).time_scales[0.5] > 50
    fill, carry = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().chunk(4)[:2]
    torch.testing.assert_close(fill, -carry)  # what enters is as little as what leaves
    (memory,) = measure(lstm, torch.randn(100, 4, 3))
    assert memory.horizon.value > 200


def test_gru_gates_that_chrono_opens():
    torch.manual_seed(0)
    gru = chrono(nn.GRU(3, 64), 100.0)
    found, _ = recurrences(gru, lambda: gru(torch.randn(50, 4, 3)))
    assert 25 < gate_statistics(found[0]).time_scales[0.5] < 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chrono(nn.LSTM(2, 3), 2.0), "horizon must be above 2"),
        (lambda: chrono(nn.Linear(2, 3), 9.0), "must hold an LSTM or GRU"),
        (lambda: orthogonal_recurrence(nn.Linear(2, 3)), "must hold a recurrent module"),
        (lambda: memory_curves(nn.GRU(2, 3), list, cotangents=1), "cotangents must be at least 2"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
