"""Weights, gradients and updates by parameter: against the plain formulas, whatever the parameters are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.watching.measure.parameters import COLUMNS, SITE_COLUMNS, Packed, ParameterNorms, pairs


@pytest.fixture(autouse=True, params=[False, True], ids=["stacks", "loops"])
def compiled_loops(request, monkeypatch):
    """With and without what some sampled steps load."""
    if request.param:
        pytest.importorskip("levada.ops.statistics.loops", exc_type=ImportError)
    else:
        monkeypatch.setattr("levada.watching.measure.stacked.loops", lambda: None)
    return request.param


def plain(model: nn.Module, step) -> dict[str, list[float]]:
    """The same by the definition, in float64."""
    named = dict(model.named_parameters())
    weights = {name: p.detach().double().clone() for name, p in named.items()}
    gradients = {name: p.grad for name, p in named.items()}
    gradients = {name: g.to_dense() if g is not None and g.is_sparse else g for name, g in gradients.items()}
    gradients = {name: None if g is None else g.detach().double().clone() for name, g in gradients.items()}
    step()
    found = {}
    for name, p in named.items():
        weight, gradient = weights[name].square().sum().item(), math.nan
        update = (p.detach().double() - weights[name]).square().sum().item() if p.requires_grad else math.nan
        if p.requires_grad:
            gradient = 0.0 if gradients[name] is None else gradients[name].square().sum().item()
        found[name] = [weight, gradient, update, p.numel()]
    return found


def compare(model: nn.Module, optimizer: torch.optim.Optimizer, *, rtol: float = 1e-6, scale=None, **options) -> Packed:
    norms = ParameterNorms(model, **options)
    twin = copy.deepcopy((model, optimizer))
    for of, to in zip(model.parameters(), twin[0].parameters(), strict=True):
        to.grad = None if of.grad is None else of.grad.clone()
    norms.before(scale)
    optimizer.step()
    packed = norms.after()
    expected = plain(twin[0], twin[1].step)
    assert packed.names == tuple(expected)
    assert packed.values.dtype == torch.float64
    wanted = torch.tensor(list(expected.values()), dtype=torch.float64)
    if scale is not None:
        wanted[:, 1] /= float(scale) ** 2
    torch.testing.assert_close(packed.values[:, :4], wanted, rtol=rtol, atol=0.0, equal_nan=True)
    assert packed.measured.tolist() == (~wanted[:, :3].isnan()).tolist()
    return packed


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 5), nn.Linear(5, 5))
    net(torch.randn(8, 200)).square().mean().backward()
    gradients = [p.grad for p in net.parameters()]
    net.to(dtype)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = gradient.to(dtype)
    return net


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "options"), [("SGD", {}), ("AdamW", {"eps": 1e-3})])
def test_it_is_the_formula(kind, options, dtype):
    net = model(dtype)
    # The update of a half-precision weight that changes by more than its half is rounded once.
    half = dtype in (torch.bfloat16, torch.float16)
    rtol = torch.finfo(dtype).eps if half else 1e-13 if dtype == torch.float64 else 3e-6
    packed = compare(net, getattr(torch.optim, kind)(net.parameters(), lr=0.1, **options), rtol=rtol)
    assert (packed.values[:, :3] > 0).all()
    assert not packed.values[:, 4].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e25])
def test_sums_reach_as_far_as_the_numbers_do(scale):
    net = nn.Linear(3, 3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
            parameter.grad = torch.randn_like(parameter) * scale
    compare(net, torch.optim.SGD(net.parameters(), lr=1.0))


def test_half_precision_neither_rounds_nor_overflows():
    net = nn.Linear(300, 300, bias=False, dtype=torch.float16)
    nn.init.constant_(net.weight, 1000.0)  # squares beyond 65504, and a sum that float16 stops counting at 2048 steps
    net.weight.grad = torch.full_like(net.weight, 1e-5)
    compare(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_long_sums_do_not_round():
    net = nn.Linear(2**11, 2**11, bias=False)
    nn.init.constant_(net.weight, 0.1)
    net.weight.grad = torch.full_like(net.weight, 0.1)
    compare(net, torch.optim.SGD(net.parameters(), lr=0.1))  # in float32 as a whole it would be wrong by 1e-3


def test_tied_weights_count_once_and_frozen_ones_have_no_gradient():
    net = model()
    net.append(nn.Linear(5, 5))
    net[4].weight = net[3].weight
    net[2].weight.requires_grad_(False)
    net[2].weight.grad = None
    packed = compare(net, torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
    row = packed.names.index("2.weight")
    assert packed.values[row, 1:3].isnan().all()
    assert "4.weight" not in packed.names
    assert packed.values[packed.names.index("4.bias"), 1:3].tolist() == [0.0, 0.0], "no gradient reached it"
    assert not packed.values[:, 4].any(), "what does not exist is not a NaN among numbers"
    given = [("first", net[3].weight), ("again", net[4].weight)]
    assert ParameterNorms(given).names == ("first",)


def test_repeated_indices_of_a_sparse_gradient_add_up():
    net = nn.Embedding(6, 4, sparse=True)
    net(torch.tensor([1, 1, 3, 1])).square().sum().backward()
    assert net.weight.grad.is_sparse
    compare(net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_the_scale_of_a_scaler_is_divided_out():
    net = model()
    for parameter in net.parameters():
        parameter.grad.mul_(1024.0)
    compare(net, torch.optim.SGD(net.parameters(), lr=1e-4), scale=torch.tensor(1024.0))
    compare(net, torch.optim.SGD(net.parameters(), lr=1e-4), scale=1024.0)


def test_what_is_not_finite_shows():
    net = model()
    net[0].weight.grad[3, 3] = math.inf
    net[2].weight.data[0, 0] = math.nan
    norms = ParameterNorms(net)
    norms.before()
    values = dict(zip(norms.names, norms.after().values, strict=True))
    bad = {name for name, row in values.items() if row[4]}
    assert bad == {"0.weight", "2.weight"}
    assert values["0.weight"][1] == math.inf
    assert values["2.weight"][0].isnan()


def test_a_lazy_parameter_has_columns_once_it_has_a_shape():
    net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    norms = ParameterNorms(net)
    norms.before()
    packed = norms.after()
    assert packed.measured.tolist() == [[False] * 3] * 2 + [[True] * 3] * 2
    net(torch.ones(2, 4)).sum().backward()
    norms.before()
    assert norms.after().measured.all()


def test_what_has_no_floating_numbers_has_no_columns():
    net = nn.ParameterList([nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)])
    norms = ParameterNorms(net)
    norms.before()
    packed = norms.after()
    assert not packed.measured.any()
    assert packed.values[0, 3:].tolist() == [0.0, 0.0]
    net.append(nn.Parameter(torch.tensor([3.0 + 4.0j])))
    norms = ParameterNorms(net)
    norms.before()
    assert norms.after().values[1].tolist() == [25.0, 0.0, 0.0, 2.0, 0.0]
    empty = ParameterNorms([])
    empty.before()
    assert empty.after().values.shape == (0, len(COLUMNS))


def test_gradients_of_a_closure_are_read_after_the_step():
    net, x = nn.Linear(3, 1), torch.ones(2, 3)
    optimizer, norms = torch.optim.SGD(net.parameters(), lr=0.1), ParameterNorms(net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).sum()
        loss.backward()
        return loss

    norms.before()
    optimizer.step(closure)
    torch.testing.assert_close(norms.after().values[:, 1], torch.tensor([12.0, 4.0]).double())


def test_what_was_frozen_as_the_step_began_has_no_gradient_behind_it():
    layer = nn.Linear(3, 2, bias=False)
    layer(torch.ones(3)).sum().backward()  # of an earlier step
    norms = ParameterNorms(layer)
    layer.requires_grad_(False)
    norms.before()
    layer.requires_grad_(True)  # as where two networks take turns
    assert norms.after().measured.tolist() == [[True, False, False]]


def test_weights_beyond_the_bound_take_turns():
    net = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(5))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)

    def turns(copy_bytes: int) -> list[list[int]]:
        norms, found = ParameterNorms(net, copy_bytes=copy_bytes), []
        for _ in range(4):
            norms.before()
            optimizer.step()
            packed = norms.after()
            rows = packed.measured[:, 2].nonzero().flatten().tolist()
            assert packed.values[rows, 2].tolist() == pytest.approx([4.0] * len(rows))
            assert packed.values[:, 2].isnan().sum() == 5 - len(rows)
            found.append(rows)
        return found

    assert turns(2 * 64) == [[0, 1], [2, 3], [0, 4], [1, 2]]
    assert turns(1) == [[0], [1], [2], [3]]
    assert turns(5 * 64) == [[0, 1, 2, 3, 4]] * 4
    assert turns(0) == [[]] * 4
    with pytest.raises(UsageError, match="copy_bytes must be at least 0, got -1"):
        ParameterNorms(net, copy_bytes=-1)


def test_nothing_is_kept_between_steps(compiled_loops):
    net = model()
    norms = ParameterNorms(net)
    norms.before()
    norms.after()
    kept = [value for value in vars(norms).values() if isinstance(value, dict) and value is not norms._constants]
    assert not any(kept)
    assert (len(norms._constants) > 0) is not compiled_loops  # they take all of these parameters
    for _ in range(300):  # a new way of grouping each time
        net[0].weight.requires_grad_(not net[0].weight.requires_grad)
        norms._turn = (norms._turn + 1) % 6
        norms.before()
        norms.after()
    assert len(norms._constants) <= 64


def test_ten_thousand_parameters_cost_a_handful_of_calls():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            # A view or an allocation starts no kernel.
            if not any(word in str(function) for word in ("detach", "empty", "unbind", "select", "view", "alias")):
                self.calls += 1
            return function(*args, **(kwargs or {}))

    def calls(count: int) -> int:
        parameters = [(str(i), nn.Parameter(torch.ones(2))) for i in range(count)]
        for _, parameter in parameters:
            parameter.grad = torch.ones(2)
        norms = ParameterNorms(parameters)
        with Count() as counter:
            norms.before()
            norms.after()
        return counter.calls

    assert calls(1000) == calls(10) < 100


def test_parameters_add_up_by_site():
    net = model()
    net[2].weight.requires_grad_(False)
    norms = ParameterNorms(net, copy_bytes=net[0].weight.numel() * 4)
    norms.before()
    for parameter in net.parameters():
        parameter.data.mul_(0.9)
    packed = norms.after()
    where = pairs(packed.names, {"0.weight": [0], "2.weight": [0, 1], "3.weight": [1], "elsewhere": [0]})
    table = dict(zip(SITE_COLUMNS, packed.by_site(where, 3).unbind(1), strict=True))
    of = {
        name: dict(zip(COLUMNS, row.tolist(), strict=True))
        for name, row in zip(packed.names, packed.values, strict=True)
    }
    first, second, third = of["0.weight"], of["2.weight"], of["3.weight"]
    assert table["weight"].tolist() == [
        first["weight"] + second["weight"],
        second["weight"] + third["weight"],
        0.0,
    ]
    assert table["count"].tolist() == [20500, 525, 0]
    assert table["gradient"].tolist() == [first["gradient"], third["gradient"], 0.0]
    assert table["gradient_count"].tolist() == [20000, 25, 0]
    assert table["update"].tolist() == [first["update"], 0.0, 0.0], "the turn of the others comes later"
    assert table["update_weight"].tolist() == [first["weight"], 0.0, 0.0]
    halved = packed.by_site(where, 3, processes=2)
    torch.testing.assert_close(halved * 2, packed.by_site(where, 3), msg="whole parameters count once over both")
    expected = sum(row["gradient"] for name, row in of.items() if name != "2.weight")
    assert packed.gradient_square() == pytest.approx(expected, rel=1e-12)


def test_shards_that_are_empty_here_count_as_nothing():
    from levada.probe.squares import sums_of_squares

    found = sums_of_squares([torch.empty(0, 4), torch.ones(2, 2), torch.empty(0, 4)])
    assert found.tolist() == [0.0, 4.0, 0.0]
