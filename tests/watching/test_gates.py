"""What is taken of the gates of recurrences: the factors on their memory, and how far these alone reach."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import levada
from levada.cells import GRU, LSTM, MinGRU, MinLSTM, Recurrent
from levada.probe.memory import memory_curve
from levada.probe.recurrence import LEAST_CALLS
from levada.probe.recurrences import recurrences
from levada.report.watch import watch_view
from levada.runs import Run
from levada.runs.inside import GATES, gates_of, why_not
from levada.watching.measure.gates import GateTaps

STEPS, ROWS, DIM = 20, 4, 5


class Loop(nn.Module):
    """A cell that is called step after step."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state, found = None, []
        for at in x:
            state = self.cell(at, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found), state


class Net(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.head = nn.LazyLinear(1)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def make(rnn, x):
    torch.manual_seed(0)
    model = Net(rnn())
    model(x)
    with torch.no_grad():  # some memories are long, some short
        for name, parameter in model.rnn.named_parameters():
            if "bias" in name:
                parameter += torch.linspace(-2, 3, len(parameter))
    return model


def data():
    return torch.randn(STEPS, ROWS, 3, generator=torch.Generator().manual_seed(1))


def taken(model, x, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf, **options) as watched:
        model(x).square().mean().backward()
        optimizer.step()
    return watched.samples[0].taken.gates


@pytest.mark.parametrize(
    "rnn",
    [
        lambda: nn.LSTM(3, DIM),
        lambda: nn.GRU(3, DIM, num_layers=2, bidirectional=True),
        lambda: nn.LSTM(3, DIM, num_layers=2, bias=False),
        lambda: Loop(nn.LSTMCell(3, DIM)),
        lambda: Loop(nn.GRUCell(3, DIM)),
        lambda: Recurrent(lambda width: LSTM(width, DIM), dim_in=3, depth=2),
        lambda: Recurrent(lambda width: GRU(width, DIM), dim_in=3, bidirectional=True),
        lambda: Recurrent(lambda width: MinLSTM(width, DIM), dim_in=3),
        lambda: Recurrent(lambda width: MinGRU(width, DIM), dim_in=3),
    ],
    ids=["lstm", "gru2x2", "lstm2", "lstm_cell", "gru_cell", "our_lstm", "our_gru", "min_lstm", "min_gru"],
)
def test_gates_are_those_that_a_check_follows_step_by_step(rnn):
    x = data()
    model = make(rnn, x)
    found, missing = recurrences(model, lambda: model(x))
    assert not missing
    hand = [memory_curve(one) for one in found]
    gates = taken(model, x)
    assert len(gates.sites) == len(hand)
    assert gates.unseen == {}
    for i, curve in enumerate(hand):
        told = {name: float(gates.signals[name][i]) for name in GATES}
        assert gates.gates[i] == curve.gates.gate
        # A cell in a loop is followed from its second step on, by a check.
        near = 0.05 if isinstance(model.rnn, Loop) else 1e-4
        assert told["gate_mean"] == pytest.approx(curve.gates.mean, rel=near)
        assert told["gate_low"] == pytest.approx(curve.gates.quantiles[0.05], rel=near)
        assert told["gate_high"] == pytest.approx(curve.gates.quantiles[0.95], rel=near)
        assert told["gate_horizon"] == pytest.approx(curve.horizon_predicted, rel=near)


def test_the_gate_of_an_lstm_by_hand():
    x = data()
    model = make(lambda: nn.LSTM(3, DIM), x)
    lstm, h, c, factors = model.rnn, torch.zeros(ROWS, DIM), torch.zeros(ROWS, DIM), []
    with torch.no_grad():
        for at in x:
            sums = at @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
            i, f, g, o = sums.chunk(4, -1)
            factors.append(f.sigmoid())
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
    forget = torch.stack(factors)
    gates = taken(model, x)
    assert gates.sites == ("rnn",)
    assert float(gates.signals["gate_mean"][0]) == pytest.approx(float(forget.mean()), rel=1e-5)
    left = torch.stack([forget[STEPS - k :].double().prod(0).square().mean().sqrt() for k in range(STEPS + 1)])
    reach = float(gates.signals["gate_horizon"][0])
    if left[-1] < 1e-3:
        assert left[math.floor(reach)] >= 1e-3 >= left[math.ceil(reach)]
    else:
        assert reach > STEPS


def test_the_function_and_the_random_state_stay_as_they_are(tmp_path):
    x = data()
    plain, model = (make(lambda: nn.LSTM(3, DIM, num_layers=2), x) for _ in range(2))
    torch.manual_seed(5)
    plain(x).square().mean().backward()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    taken(model, x, run=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), after)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert not any(module._forward_hooks for module in model.modules())


class Passes:
    """Taps on a module that is called by itself, in passes of one step."""

    def __init__(self, module):
        self.module, self.number = module, None
        self.taps = GateTaps(module, lambda: self.number)

    def run(self, *given):
        """Call the module, each argument in the next pass that counts, and return what would be sent."""
        self.taps.attach()
        for self.number, each in enumerate(given):
            self.module(each)
        sent = self.taps.pack(set(range(len(given))), torch.device("cpu"))
        self.taps.detach()
        return sent

    def means(self, *given):
        """Return the mean factor by site."""
        gates = self.run(*given).host(self.run(*given).values)
        return dict(zip(gates.sites, gates.signals["gate_mean"].tolist(), strict=True))


def test_gates_are_those_of_the_last_pass_that_counts():
    torch.manual_seed(0)
    small, large = 0.1 * data(), 10 * data()
    passes = Passes(nn.GRU(3, DIM))
    ((_, first),) = passes.means(small).items()
    ((_, last),) = passes.means(large).items()
    assert first != last
    assert passes.means(small, large) == {"": last}
    assert passes.means(large, small) == {"": first}
    passes.taps.attach()
    for passes.number, each in ((0, small), (None, large), (1, large)):
        passes.module(each)
    sent = passes.taps.pack({0}, torch.device("cpu"))
    assert sent.host(sent.values).signals["gate_mean"].tolist() == [first]
    assert passes.taps.pack({7}, torch.device("cpu")) is None
    passes.taps.detach()


class Stretches(nn.Module):
    """A cell that runs several sequences, each from the start."""

    def __init__(self, *parts):
        super().__init__()
        self.cell, self.parts = nn.GRUCell(3, DIM), parts

    def forward(self, x):
        for part in self.parts:
            state = None
            for at in x[part]:
                state = self.cell(at, state)


@pytest.mark.parametrize("parts", [(slice(12), slice(12, 20)), (slice(12, 20), slice(12)), (slice(12), slice(4))])
def test_of_a_cell_that_runs_several_sequences_the_longest_is_told(parts):
    torch.manual_seed(0)
    whole = Passes(Stretches(*parts))
    alone = Passes(Stretches(slice(12)))
    alone.module.load_state_dict(whole.module.state_dict())
    assert whole.means(data()) == alone.means(data())
    assert len(whole.run(data()).values) == 3 + 12 + 1


def test_a_few_calls_of_a_cell_are_no_sequence():
    for length in (LEAST_CALLS, LEAST_CALLS + 1):
        assert (Passes(Stretches(slice(length))).run(data()) is None) == (length == LEAST_CALLS)


class Many(nn.ModuleList):
    def forward(self, x):
        return [each(x) for each in self]


def test_of_many_recurrences_some_are_kept_and_the_others_named():
    sent = Passes(Many(nn.GRU(3, 1) for _ in range(66))).run(data())
    gates = sent.host(sent.values)
    assert gates.sites == tuple(str(i) for i in range(64))
    assert gates.unseen == dict.fromkeys(("64", "65"), "of each sample 64 are kept")


def test_what_runs_compiled_is_named_and_what_does_not_is_seen():
    torch.manual_seed(0)
    model = nn.ModuleDict({"compiled": torch.compile(nn.GRU(3, DIM), backend="eager"), "plain": nn.GRU(3, DIM)})
    taps = GateTaps(model, lambda: 0)
    assert [name for name, _ in taps.modules] == ["plain"]
    for _ in range(2):
        sent = taps.pack({0}, torch.device("cpu"))
        assert sent.host(sent.values).unseen == {"compiled": "it runs compiled"}
        taps.detach()


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("rnn", "given", "why"),
    [
        (lambda: nn.LSTM(3, DIM, num_layers=2, dropout=0.5), data(), "what its layers drop between them is not known"),
        (lambda: nn.LSTM(3, DIM, proj_size=2), data(), "it has projections"),
        (lambda: nn.GRU(3, DIM), pack_sequence([data()[:, 0], data()[:5, 1]]), "its sequences are packed"),
    ],
    ids=["dropout", "projections", "packed"],
)
def test_gates_that_cannot_be_seen_are_named(rnn, given, why, tmp_path):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = rnn(), nn.LazyLinear(1)

        def forward(self, x):
            out = self.rnn(x)[0]
            return self.head(out if isinstance(out, torch.Tensor) else out.data)

    model = Last()
    model(given)
    gates = taken(model, given, run=tmp_path / "run")
    assert (gates.sites, gates.unseen) == ((), {"rnn": why})
    run = Run(tmp_path / "run")
    assert run.parts() == ()
    assert why_not(run.events(), "gates") == f"The gates of rnn cannot be seen: {why}."


def test_a_run_keeps_them(tmp_path):
    x = data()
    model = make(lambda: nn.GRU(3, DIM, num_layers=2), x)
    gates = taken(model, x, run=tmp_path / "run")
    (first, second) = gates_of(Run(tmp_path / "run").signals(part="gates"))
    assert (first.site, first.gate, second.site) == ("rnn[layer 0]", "update gate", "rnn[layer 1]")
    assert first.steps == [0]
    for i, one in enumerate((first, second)):
        assert one.mean == pytest.approx([float(gates.signals["gate_mean"][i])], rel=1e-5)
        assert one.horizon == pytest.approx([float(gates.signals["gate_horizon"][i])], rel=1e-5)
    figures = watch_view(Run(tmp_path / "run"), "run", list(Run(tmp_path / "run").events()))["figures"]
    (drawn,) = (figure for figure in figures if figure["title"] == "How far back the gates reach")
    assert "rnn[layer 1]" in str(drawn)
