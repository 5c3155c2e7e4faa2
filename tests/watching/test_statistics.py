"""What compiled loops measure of a sampled step, against what is measured without them."""

import math

import pytest
import torch
from torch import nn

import levada
from levada.ops.statistics.reference import SQUARES, ZEROS
from levada.watching.loop.overhead import Cadence
from levada.watching.measure import listed, statistics
from levada.watching.measure.listed import Listed
from levada.watching.measure.parameters import ParameterNorms
from levada.watching.measure.statistics import Kind, Pool
from levada.watching.measure.structure import Structure

loops = pytest.importorskip("levada.ops.statistics.loops", exc_type=ImportError)


def without(monkeypatch):
    monkeypatch.setattr(statistics, "import_kernels", lambda module, package: None)
    monkeypatch.setattr(listed, "loops", lambda: None)
    monkeypatch.setattr("levada.watching.measure.stacked.loops", lambda: None)


class Block(nn.Module):
    """With an activation in place, whose input is overwritten, and one whose output is the block's."""

    def __init__(self, dim):
        super().__init__()
        self.first, self.second = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 3, padding=1)
        self.norm, self.before, self.after = nn.BatchNorm2d(dim), nn.ReLU(inplace=True), nn.ReLU()

    def forward(self, x):
        return self.after(x + self.second(self.before(self.norm(self.first(x)))))


MODELS = {
    "mlp": (lambda: nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(40))), (8, 16)),
    "in place": (
        lambda: nn.Sequential(*(m for _ in range(9) for m in (nn.Linear(7, 7), nn.ReLU(inplace=True)))),
        (5, 7),
    ),
    "large": (lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()), (5000, 64)),
    "convolution": (lambda: nn.Sequential(*(Block(4) for _ in range(5))), (3, 4, 9, 9)),
    "channels last": (
        lambda: nn.Sequential(*(Block(4) for _ in range(3))).to(memory_format=torch.channels_last),
        (3, 4, 9, 9),
    ),
    "half": (
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4))).bfloat16(),
        (8, 16),
    ),
    "double": (
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4))).double(),
        (8, 16),
    ),
}


@pytest.fixture(autouse=True)
def loaded_at_once(monkeypatch):
    monkeypatch.setattr(statistics, "_LOADING", 0.0)


def samples(name, steps=5):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watched:
        for _ in range(steps):
            optimizer.zero_grad()
            x = torch.randn(shape).to(next(model.parameters()).dtype)
            model(x).square().mean().backward()
            optimizer.step()
    return watched, watched.samples


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_the_same_with_and_without_loops(name, monkeypatch):
    watched, got = samples(name)
    assert watched._engine._statistics.signal._pool.on
    with monkeypatch.context() as patch:
        without(patch)
        watched, expected = samples(name)
        assert not watched._engine._statistics.signal._pool.on
    assert len(got) == len(expected) == 5
    narrow = 4e-3 if name == "half" else 1e-6
    for one, other in zip(got, expected, strict=True):
        for signal, values in other.values.items():
            torch.testing.assert_close(one.values[signal], values, rtol=narrow, atol=0.0, equal_nan=True, msg=signal)


def test_loading_waits_until_it_is_paid_for(monkeypatch):
    loaded = []
    monkeypatch.setattr(statistics, "import_kernels", lambda *names: loaded.append(names))
    monkeypatch.setattr(statistics, "loops", lambda: None)
    monkeypatch.setattr(statistics, "_LOADING", 2.0)
    measured, cadence = statistics.Statistics(), Cadence(every=1, max_overhead=0.01)
    for seconds, expected in ((100.0, 0), (99.0, 0), (51.0, 1)):
        cadence.count(False, own=0.005, seconds=seconds)
        cadence.count(True, own=0.1, seconds=0.5)
        measured.load(cadence.affords)  # 1, 2, 2.5 seconds are allowed; 0.1 and 0.005 a time are taken
        assert len(loaded) == expected


def test_loops_that_something_has_loaded_need_not_be_paid_for():
    measured = statistics.Statistics()
    measured.load(lambda seconds: False)
    assert measured.signal._pool.on
    assert measured.gradient._pool.on


def test_signals_and_zeros_share_their_stacks_without_loops(monkeypatch):
    stacked, stack = [], torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: stacked.append(len(tensors)) or stack(tensors))
    measured, device = statistics.Statistics(), torch.device("cpu")
    whole, alone, overwritten = torch.tensor([3.0, 0.0, -4.0]), torch.tensor([0.0, 0.0, 2.0]), torch.ones(3)
    measured.see((1, 0), whole, at_once=False)
    measured.see((1, 1), whole, at_once=True)
    measured.see((1, 2), overwritten, at_once=False)
    measured.zeros.add((1, 3), alone)
    overwritten.zero_()
    for kind, expected in (
        (measured.signal, {(1, 0): 25.0, (1, 1): 25.0}),
        (measured.zeros, {(1, 0): 1.0, (1, 1): 1.0, (1, 3): 2.0}),
    ):
        kind.flush()
        slots, counts, sums = kind.rows(device, torch.float64)
        assert dict(zip(slots, sums.tolist(), strict=True)) == pytest.approx(expected)
        assert counts == [3] * len(slots)
        assert kind.hasty == {2}
    assert stacked == [1, 1]  # what was told for both, and what for one
    for kind in measured.all():
        kind.clear()
    assert [kind.rows(device, torch.float64)[0] for kind in measured.all()] == [[], [], []]


def test_a_tensor_told_twice_is_measured_once_for_both(monkeypatch):
    calls = []
    measure = statistics.cpu.statistics
    monkeypatch.setattr(statistics.cpu, "statistics", lambda *given: calls.append(given) or measure(*given))
    pool = Pool()
    pool.on = True
    signal, zeros = Kind(SQUARES, pool), Kind(ZEROS, pool)
    x, y = torch.tensor([3.0, 0.0, -4.0]), torch.ones(2)
    zeros.add((1, 0), x)
    signal.add((1, 0), x)
    signal.add((1, 1), y)
    signal.flush()
    zeros.flush()
    assert [len(tensors) for tensors, _ in calls] == [2]
    assert (signal.slots, signal.counts, signal.sums) == ([(1, 0), (1, 1)], [3, 2], [25.0, 2.0])
    assert (zeros.slots, zeros.counts, zeros.sums) == ([(1, 0)], [3], [1.0])


def test_what_is_overwritten_before_it_is_measured_is_left_out_and_later_measured_at_once():
    pool = Pool()
    pool.on = True
    signal, zeros = Kind(SQUARES, pool), Kind(ZEROS, pool)
    x = torch.ones(3)
    signal.add((1, 0), x)
    x.relu_()
    zeros.add((1, 0), x)  # of what is there now
    signal.flush()
    assert signal.slots == []
    assert signal.hasty == {0}
    assert zeros.sums == [0.0]
    signal.add((2, 0), x)
    x.zero_()
    signal.flush()
    slots, counts, sums = signal.rows(torch.device("cpu"), torch.float64)
    assert (slots, counts, sums.tolist()) == ([(2, 0)], [3], [pytest.approx(3.0)])


def norms(parameters, scale=None, changed=lambda: None):
    measured = ParameterNorms(parameters)
    measured.before(scale)
    with torch.no_grad():
        for _, p in parameters:
            p.mul_(1.25)
    changed()
    return measured, measured.after()


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 64), (3,), (64, 64), (0, 4), (1,), (5, 700), (2000, 600), ()]
    found = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    found.append(nn.Parameter(torch.randn(6, 5, generator=generator).mT))  # not in one piece
    found.append(nn.Parameter(torch.full((4, 4), 1e-30)))
    for p in found:
        p.grad = torch.randn(p.shape, generator=generator)
    found[2].grad = None
    frozen = [nn.Parameter(torch.randn(9, 9, generator=generator), requires_grad=False) for _ in range(2)]
    return [(str(i), p) for i, p in enumerate([*found, *frozen])]


@pytest.mark.parametrize("scale", [None, 8.0])
@pytest.mark.parametrize("missing", [True, False])
def test_norms_of_parameters_are_the_same_with_and_without_loops(scale, missing, monkeypatch):
    given = parameters()
    if not missing:
        given[2][1].grad = torch.ones(64, 64)
    if scale and not missing:
        given[1][1].grad.fill_(torch.inf)
    measured, got = norms(given, scale)
    assert any(type(stack) is Listed for stack in measured._stacks._all)
    again = parameters()
    for (_, p), (_, q) in zip(given, again, strict=True):
        q.grad = p.grad
    without(monkeypatch)
    measured, expected = norms(again, scale)
    assert not any(type(stack) is Listed for stack in measured._stacks._all)
    torch.testing.assert_close(got.values, expected.values, rtol=1e-6, atol=0.0, equal_nan=True)
    assert torch.equal(got.measured, expected.measured)


def test_a_parameter_that_is_replaced_during_the_step_is_not_read_by_its_old_address():
    given = [("a", nn.Parameter(torch.ones(4))), ("b", nn.Parameter(torch.ones(3)))]
    for _, p in given:
        p.grad = torch.ones_like(p)

    def replace():
        given[0][1].data = torch.ones(2)

    with pytest.raises(RuntimeError, match="a parameter was replaced"):
        norms(given, changed=replace)


def test_parameters_are_listed_as_the_model_lists_them():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ModuleDict({"a": nn.Linear(2, 3), "b": shared}), nn.ReLU())
    model[1].a.bias = None
    model[2].weight = shared.weight
    model.register_module("empty", None)
    assert [*map(id, Structure(model).parameters)] == [*map(id, model.parameters())]

    class Own(nn.Linear):
        def parameters(self, recurse=True):
            yield self.weight

    assert [*map(id, Structure(own := Own(2, 2)).parameters)] == [id(own.weight)]
