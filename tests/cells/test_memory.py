"""What the probe and the rules of check see of the cells: memories that fade, explode, or suffice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from levada import Residual, check
from levada.cells import GRU, LSTM, RNN, Dilated, Leaky, MinGRU, Recurrent, RecurrentHighway, ResidualInTime
from levada.initialise import chrono, orthogonal_recurrence
from levada.probe import gate_statistics, input_gradients, lyapunov_exponents, memory_curves, recurrences
from levada.theory import gate_time_scale

CELLS = {
    "RNN": lambda d: RNN(d, 8),
    "constrained": lambda d: RNN(d, 8, constrained=True),
    "LSTM": lambda d: LSTM(d, 8),
    "GRU": lambda d: GRU(d, 8),
    "RecurrentHighway": lambda d: RecurrentHighway(d, 8),
    "Dilated": lambda d: Dilated(LSTM(d, 8), 3),
    "Leaky": lambda d: Leaky(RNN(d, 8), 0.3),
    "ResidualInTime": lambda d: ResidualInTime(GRU(d, 8), 0.1),
}
CLASSES, DIM, ROWS = 4, 8, 64


class Inside(nn.Module):
    """A net in which recurrence is somewhere."""

    def __init__(self, cell, **options):
        super().__init__()
        self.first, self.net = nn.Linear(3, 5), Recurrent(cell, dim_in=5, **options)
        self.head = nn.Linear(self.net.dim_out, 2)

    def forward(self, x, **given):
        return self.head(self.net(self.first(x), **given)[0])


@pytest.mark.parametrize("name", CELLS)
def test_each_cell_is_seen_within_a_model(name):
    torch.manual_seed(0)
    model, x = Inside(CELLS[name], depth=2, bidirectional=True), torch.randn(20, 4, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found, missing = recurrences(model, lambda: model(x))
    assert not missing
    assert [one.site for one in found] == [
        f"net.layers.{layer}[{way}]" for layer in range(2) for way in ("forward", "backward")
    ]
    assert {one.steps for one in found} == {20}
    curves = memory_curves(model, lambda: model(x))
    for curve in curves:
        assert curve.kind == (name if name != "constrained" else "RNN")
        assert curve.horizon.value > 0
        assert 0.4 < curve.horizon_predicted / curve.horizon.value < 1.6 or math.isinf(curve.horizon.value)
    gated = name not in ("RNN", "constrained", "Leaky")
    assert all((gate_statistics(one) is not None) == gated for one in found)
    gradients = input_gradients(model, lambda: model(x).square().sum(), found)
    assert {key: len(value) for key, value in gradients.items()} == {"net.layers.0": 20, "net.layers.1": 20}
    assert all(bool(value.gt(0).all()) for value in gradients.values())
    assert bool(lyapunov_exponents(found[0]).values.isfinite().all())
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(model(x), model(x)), "what was followed is as it was"


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_curves_are_those_of_torchs_modules(kind):
    torch.manual_seed(0)
    net = Recurrent(lambda d: kind(d, 6), dim_in=3, depth=2, bidirectional=True)
    twin, x = net.to_torch(), torch.randn(15, 4, 3)
    for ours, theirs in zip(memory_curves(net, lambda: net(x)), memory_curves(twin, lambda: twin(x)), strict=True):
        torch.testing.assert_close(ours.curve, theirs.curve)
        torch.testing.assert_close(ours.predicted, theirs.predicted)
        assert ours.kind == theirs.kind.partition("_")[0]


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_rows_of_several_lengths_end_where_those_of_torchs_modules_do(kind):
    torch.manual_seed(0)
    net = Recurrent(lambda d: kind(d, 6), dim_in=3, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(15, 4, 3), torch.tensor([15, 11, 9, 4]))
    ours, _ = recurrences(net, lambda: net(packed))
    twin = net.to_torch()
    theirs, _ = recurrences(twin, lambda: twin(packed))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.lengths, b.lengths)
        one, other = a.initial, b.initial
        for t in range(15):
            one, other = a.step(t, one), b.step(t, other)
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_a_dilated_cell_keeps_for_as_many_times_longer(bias):
    cell = LSTM(2, 8, forget_bias=bias)
    with torch.no_grad():
        cell.weight_hh.zero_()
        cell.weight_ih[8:16] = 0.0
    net, x = Recurrent([Dilated(cell, 4)]), torch.randn(60, 4, 2)
    (memory,) = memory_curves(net, lambda: net(x))
    factors = memory.curve[12:48:4] / memory.curve[8:44:4]
    torch.testing.assert_close(factors, torch.full((9,), bias).sigmoid().double(), rtol=1e-5, atol=0.0)
    assert memory.gates.gate == "effective forget gate"
    assert memory.gates.time_scales[0.5] == pytest.approx(4 * gate_time_scale(bias), rel=1e-4)


def test_a_leak_alone_keeps_what_the_rate_leaves():
    cell = RNN(2, 8)
    cell.weight_hh.data.zero_()
    net, x = Recurrent([Leaky(cell, 0.25)]), torch.randn(60, 4, 2)
    (memory,) = memory_curves(net, lambda: net(x))
    assert memory.tau == pytest.approx(-1 / math.log(0.75), rel=1e-5)
    torch.testing.assert_close(memory.curve, memory.predicted, rtol=1e-6, atol=0.0)


def test_between_connections_and_with_lengths_each_layer_is_seen_at_its_own_input():
    torch.manual_seed(0)
    model, x = Inside(lambda d: GRU(d, 5), depth=2, connection=Residual), torch.randn(12, 4, 3)
    lengths = [12, 3, 7, 7]
    found, missing = recurrences(model, lambda: model(x, lengths=lengths))
    assert not missing
    assert [one.site for one in found] == ["net.layers.layers.0.branch", "net.layers.layers.1.branch"]
    assert found[0].lengths.tolist() == [12, 7, 7, 3]


def test_dropout_between_layers_does_not_keep_it_from_being_followed():
    model, x = Inside(lambda d: GRU(d, 5), depth=2, dropout=0.5), torch.randn(12, 4, 3)
    found, missing = recurrences(model, lambda: model(x))
    assert (len(found), missing) == (2, {})


def test_of_a_gradient_that_is_cut_the_last_piece_counts():
    model, x = Inside(lambda d: GRU(d, 5), truncate=8), torch.randn(20, 4, 3)
    (one,), _ = recurrences(model, lambda: model(x))
    assert one.steps == 4
    with torch.no_grad():
        state, y = one.initial, model.net(model.first(x))[0]
        for t in range(4):
            state = one.step(t, state)
    torch.testing.assert_close(state[0].float(), y[-1], rtol=1e-5, atol=1e-6)


def test_calls_that_hand_their_state_on_are_one_sequence():
    net, x = Recurrent(lambda d: LSTM(d, 5), dim_in=3), torch.randn(12, 4, 3)

    def run():
        state = None
        for piece in x.split(3):
            _, state = net(piece, state)

    (one,), missing = recurrences(net, run)
    assert (one.steps, missing) == (12, {})


@pytest.mark.parametrize(("alone", "steps"), [(5, 6), (9, 9)])
def test_of_several_sequences_the_one_with_most_steps_counts(alone, steps):
    net = Recurrent(lambda d: LSTM(d, 5), dim_in=3)

    def run():
        net(torch.randn(alone, 4, 3))
        state = None
        for piece in torch.randn(6, 4, 3).split(2):
            _, state = net(piece, state)

    (one,), _ = recurrences(net, run)
    assert one.steps == steps


class Loop(nn.Module):
    """What one writes without `Recurrent`."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in x:
            state = self.cell(step, state)
        return state[0]


@pytest.mark.parametrize(
    ("cell", "gate"),
    [(LSTM(3, 5), "forget gate"), (Dilated(GRU(3, 5), 3), "effective update gate"), (RNN(3, 5), "")],
)
def test_a_cell_in_a_loop_of_ones_own_says_its_gate(cell, gate):
    model, x = Loop(cell), torch.randn(12, 4, 3)
    (one,), missing = recurrences(model, lambda: model(x))
    (curve,) = memory_curves(model, lambda: model(x))
    assert (missing, one.gate) == ({}, gate)
    assert curve.predicted is not None


def test_what_does_not_give_what_was_returned_is_not_followed():
    net, x = Recurrent(lambda d: GRU(d, 5), dim_in=3), torch.randn(12, 4, 3)
    handle = net.layers[0].register_forward_hook(lambda module, args, output: (output[0] + 1, output[1]))
    found, missing = recurrences(net, lambda: net(x))
    handle.remove()
    assert not found
    assert "do not give what it returns" in missing["layers.0"]


# --- initialisations


@pytest.mark.parametrize("cell", [LSTM(2, 500), GRU(2, 500), RecurrentHighway(2, 500, depth=3)])
def test_chrono_gives_each_gated_cell_memories_up_to_the_horizon(cell):
    net = nn.Sequential(Recurrent([cell]))
    with torch.no_grad():
        for name, p in cell.named_parameters():
            if name.startswith("weight"):
                p.zero_()
    chrono(net, 101.0, generator=torch.Generator().manual_seed(0))
    factor = cell.carry(cell.project(torch.zeros(1, 2)), cell.begin(1))[0].double().detach()
    steps = 1 / (1 - factor)  # of a factor 1 - 1/T
    assert 1.9 < steps.min() < 3
    assert 95 < steps.max() < 102
    assert steps.mean() == pytest.approx(51, abs=4)


@pytest.mark.parametrize(
    "around", [lambda c: Dilated(c, 8), lambda c: Leaky(c, 0.3), lambda c: Leaky(Dilated(c, 8), 1)]
)
@pytest.mark.parametrize("kind", [LSTM, GRU, MinGRU])
def test_chrono_counts_the_steps_of_the_sequence(kind, around):
    inner = kind(2, 400)
    cell = around(inner)
    chrono(nn.Sequential(Recurrent([cell])), 101.0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, p in cell.named_parameters():
            if "weight" in name:
                p.zero_()
        factor = cell.double().carry(
            torch.zeros(1, len(inner.bias_ih)) + inner.bias_ih, cell.begin(1, dtype=torch.float64)
        )
    steps = 1 / (1 - factor[0])
    skip = 1 / 0.3 if isinstance(cell, Leaky) and cell.rate < 1 else 2
    assert skip - 1e-6 < steps.min() < skip + 1
    assert 95 < steps.max() < 102
    assert steps.mean() == pytest.approx(51, abs=4)


def test_a_module_that_sets_its_gate_is_left_to_do_so():
    class Outer(nn.Module):
        dim = 5

        def __init__(self, sets):
            super().__init__()
            self.inner, self.sets, self.asked = LSTM(2, 5), sets, 0

        def carry_bias(self, logit):
            self.asked += 1
            assert logit.shape == (5,)
            return self.sets

    for sets in (True, False):
        outer = Outer(sets)
        before = outer.inner.bias_ih.clone()
        chrono(nn.ModuleList([outer, outer]), 50.0)
        assert torch.equal(outer.inner.bias_ih, before) == sets
        assert outer.asked == 1


def test_equal_seeds_give_torchs_modules_the_same_start():
    net = Recurrent(lambda d: LSTM(d, 6), dim_in=3)
    twin = net.to_torch()
    for start in (lambda m, g: chrono(m, 50.0, generator=g), lambda m, g: orthogonal_recurrence(m, generator=g)):
        start(net, torch.Generator().manual_seed(1))
        start(twin, torch.Generator().manual_seed(1))
        for name in ("weight_hh", "bias_ih", "bias_hh"):
            assert torch.equal(getattr(net.cells[0], name), getattr(twin, f"{name}_l0"))


@pytest.mark.parametrize("name", CELLS)
def test_recurrent_weights_become_orthogonal(name):
    net = Recurrent(CELLS[name], dim_in=3)
    if name != "constrained":
        orthogonal_recurrence(net, gain=1.5)
    weights = [w for cell in net.modules() if hasattr(cell, "recurrent_weights") for w in cell.recurrent_weights()]
    assert len(weights) > 0 or name == "constrained"
    for weight in weights:
        torch.testing.assert_close(weight @ weight.T, 2.25 * torch.eye(8), rtol=1e-4, atol=1e-4)


# --- rules of check


class Last(nn.Module):
    """What is read is the last step's output."""

    def __init__(self, cell, **options):
        super().__init__()
        self.net = Recurrent(cell, dim_in=DIM, batch_first=True, **options)
        self.head = nn.Linear(self.net.dim_out, CLASSES)

    def forward(self, x):
        return self.head(self.net(x)[0][:, -1])


def recall(steps):
    """The first symbol is asked for at the end; all that stands between is the same."""
    targets = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(0))
    x = torch.zeros(ROWS, steps, DIM)
    x[:, 1:, CLASSES] = 1.0
    x[torch.arange(ROWS), 0, targets] = 1.0
    return x, targets


def told(model, batch):
    report = check(model, batch, optimizer="Adam", lr=1e-2)
    return report, {f.rule: f for f in report.findings if f.status == "fired"}


SHORT = {
    "LSTM": lambda d: LSTM(d, 32, forget_bias=-2.0),
    "GRU": lambda d: GRU(d, 32),
    "Leaky": lambda d: Leaky(RNN(d, 32), 0.9),
    "RecurrentHighway": lambda d: RecurrentHighway(d, 32, transform_bias=1.0),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_memory_that_is_too_short_is_told(name):
    torch.manual_seed(0)
    report, found = told(Last(SHORT[name]), recall(80))
    assert "short_memory" in found, str(report)
    finding = found["short_memory"]
    assert finding.where["first"].startswith("net")
    assert finding.evidence["memory_horizon"]["high"] < 40
    assert finding.evidence["gradient_in_first_half"] < 1e-6
    assert finding.remedies[0].name == ("orthogonal_recurrence" if name == "Leaky" else "chrono")


INNOCENT = {
    "LSTM": lambda d: LSTM(d, 32, chrono=100.0),
    "dilated": lambda d: Dilated(LSTM(d, 32), 16),
    "orthogonal": lambda d: RNN(d, 32, start="orthogonal", constrained=True),
    "leaky": lambda d: Leaky(RNN(d, 32), 0.02),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_a_memory_that_lasts_is_not_blamed(name):
    torch.manual_seed(0)
    report, found = told(Last(INNOCENT[name]), recall(80 if name != "dilated" else 81))
    assert not {"short_memory", "exploding_memory"} & set(found), str(report)


def loud(d):
    cell = RNN(d, 64)
    cell.weight_hh.data.normal_(0.0, 3 / 8)
    return cell


@pytest.mark.parametrize(("cell", "fired"), [(loud, True), (lambda d: RNN(d, 64, start="orthogonal"), False)])
def test_a_memory_that_explodes_is_told(cell, fired):
    torch.manual_seed(0)
    x = torch.randn(ROWS, 60, DIM, generator=torch.Generator().manual_seed(0))
    report, found = told(Last(cell), (x, torch.arange(ROWS) % CLASSES))
    assert ("exploding_memory" in found) == fired, str(report)
