"""What every cell of the library must do, run over all that `levada.cells` lists.

A new cell needs nothing here, unless it goes around another (`AROUND`) or has a form that deserves a case (`VARIANTS`).
"""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch
from torch import nn
from torch.func import functional_call

import levada.cells
from levada._errors import UsageError
from levada.cells import GRU, LSTM, RNN, Cell, Recurrent

AROUND = {"Dilated": (GRU, 3), "Leaky": (RNN, 0.3), "ResidualInTime": (RNN, 0.5)}
VARIANTS = {
    "RNN": {"relu": {"nonlinearity": "relu"}, "constrained": {"constrained": True}, "bare": {"bias": False}},
    "LSTM": {"bare": {"bias": False}, "chrono": {"chrono": 20.0}},
    "GRU": {"bare": {"bias": False}},
    "RecurrentHighway": {"one": {"depth": 1}},
}
NESTED = {
    "Dilated-LSTM": lambda dim_in, dim: levada.cells.Dilated(LSTM(dim_in, dim), 2),
    "Dilated-1": lambda dim_in, dim: levada.cells.Dilated(GRU(dim_in, dim), 1),
    "Leaky-Dilated": lambda dim_in, dim: levada.cells.Leaky(levada.cells.Dilated(LSTM(dim_in, dim), 3), 0.5),
}
DIM_IN, DIM = 3, 4


def listed():
    classes = {name: c for name, c in vars(levada.cells).items() if isinstance(c, type) and issubclass(c, Cell)}
    return {name: c for name, c in classes.items() if not inspect.isabstract(c)}


def cases():
    found = {}
    for name, kind in listed().items():
        if name in AROUND:
            inner, option = AROUND[name]
            found[name] = lambda i, d, kind=kind, inner=inner, option=option: kind(inner(i, d), option)
            continue
        for variant, options in {"": {}, **VARIANTS.get(name, {})}.items():
            key = f"{name}-{variant}" if variant else name
            found[key] = lambda i, d, kind=kind, options=options: kind(i, d, **options)
    return {**found, **NESTED}


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES)


def build(case, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return CASES[case](DIM_IN, DIM).to(dtype)


def sequence(*shape, dtype=torch.float32, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def started(cell, batch, dtype=torch.float32):
    """A state that is not zero."""
    generator = torch.Generator().manual_seed(3)
    return tuple(0.5 * torch.randn(batch, *s, generator=generator).to(dtype) for s in cell.state_shapes)


def flat(result):
    outputs, state = result
    return (outputs, *state)


def looped(cell, x, state):
    outputs = []
    for one in x:
        state = cell(one, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def test_the_tables_name_what_exists():
    assert len(CASES) > len(listed()) > 5
    assert set(AROUND) | set(VARIANTS) <= set(listed())


@pytest.mark.parametrize("name", listed())
def test_classes_are_final_and_documented(name):
    kind = listed()[name]
    assert getattr(kind, "__final__", False), "a class is abstract or final"
    for section in ("Args:", "Shape:", "Cost:", "Raises:", "Example:", "Source:"):
        assert section in kind.__doc__
    first = list(inspect.signature(kind).parameters)
    assert first[:2] == ["dim_in", "dim"] or first[0] == "cell"


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shape_and_dtype(case, dtype):
    cell, x = build(case), sequence(7, 2, DIM_IN, dtype=dtype)
    if "constrained" not in case:  # what makes a matrix orthogonal has no bfloat16
        cell = cell.to(dtype)
    else:
        x = x.float()
    outputs, state = cell.run(x)
    assert outputs.shape == (7, 2, DIM)
    assert [s.shape for s in state] == [s.shape for s in cell.begin(2)] == [(2, *s) for s in cell.state_shapes]
    assert {outputs.dtype, *(s.dtype for s in state)} == {x.dtype}
    assert torch.equal(outputs[-1], state[0]), "the first tensor of a state is what the cell gives out"
    assert cell.state_shapes[0] == (DIM,)
    assert cell.project(x).shape[:2] == (7, 2)


@every_case
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_sequence_is_its_steps(case, steps):
    cell, x = build(case, torch.float64), sequence(steps, 5, DIM_IN, dtype=torch.float64).requires_grad_()
    parameters = [x, *cell.parameters()]
    for state in (None, started(cell, 5, torch.float64)):
        ours, expected = flat(cell.run(x, state)), flat(looped(cell, x, state))
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        grads, theirs = (
            torch.autograd.grad(sum((s * s.cos()).sum() for s in out), parameters, allow_unused=True)
            for out in (ours, expected)
        )
        assert all((a is None) == (b is None) for a, b in zip(grads, theirs, strict=True))
        pairs = [(a, b) for a, b in zip(grads, theirs, strict=True) if a is not None]
        torch.testing.assert_close(*zip(*pairs, strict=True), rtol=1e-10, atol=1e-12)


@every_case
def test_a_state_is_handed_on(case):
    cell, x = build(case, torch.float64), sequence(11, 2, DIM_IN, dtype=torch.float64)
    whole, last = cell.run(x, started(cell, 2, torch.float64))
    first, state = cell.run(x[:4], started(cell, 2, torch.float64))
    rest, state = cell.run(x[4:], state)
    torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-12)


@every_case
def test_gradients_reach_every_parameter_input_and_state(case):
    cell, x = build(case), sequence(9, 4, DIM_IN).requires_grad_()
    state = tuple(s.requires_grad_() for s in started(cell, 4))
    outputs, last = cell.run(x, state)
    (outputs.square().sum() + sum(s.square().sum() for s in last)).backward()
    named = [*cell.named_parameters(), ("input", x), *((f"state {i}", s) for i, s in enumerate(state))]
    for name, value in named:
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        rows = value.grad.flatten(1) if value.ndim > 1 else value.grad
        assert rows.abs().sum() > 0, name


@every_case
def test_rows_of_a_batch_are_independent(case):
    cell, x = build(case, torch.float64), sequence(6, 4, DIM_IN, dtype=torch.float64)
    other = x.clone()
    other[:, 1:] = 5 * torch.randn_like(other[:, 1:])
    x.requires_grad_()
    outputs, _ = cell.run(x)
    torch.testing.assert_close(outputs[:, 0], cell.run(other)[0][:, 0], rtol=1e-12, atol=1e-12)
    outputs[:, 0].sum().backward()
    assert x.grad[:, 0].abs().sum() > 0
    assert x.grad[:, 1:].abs().sum() == 0


@every_case
def test_what_comes_later_has_no_effect_before(case):
    cell, x = build(case, torch.float64), sequence(6, 2, DIM_IN, dtype=torch.float64).requires_grad_()
    cell.run(x)[0][2].sum().backward()
    assert x.grad[2].abs().sum() > 0
    assert x.grad[3:].abs().sum() == 0


@every_case
def test_state_dict_round_trip(case):
    cell, other, x = build(case), build(case, seed=1), sequence(5, 2, DIM_IN)
    assert not torch.equal(cell.run(x)[0], other.run(x)[0])
    file = io.BytesIO()
    torch.save(cell.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(cell.run(x)[0], other.run(x)[0])
    assert torch.equal(cell.run(x)[0], copy.deepcopy(cell).run(x)[0])
    assert all(parameter.ndim > 0 for parameter in cell.parameters()), "a learned scalar has shape (1,)"


@every_case
@pytest.mark.parametrize("how", ["step", "run"])
def test_gradcheck(case, how):
    cell = build(case, torch.float64)
    x = sequence(*((4,) if how == "run" else ()), 2, DIM_IN, dtype=torch.float64).requires_grad_()
    names, values = zip(*cell.named_parameters(), strict=True)
    state = tuple(s.requires_grad_() for s in started(cell, 2, torch.float64))

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x, *state):
            return flat(cell.run(x, state)) if how == "run" else cell(x, state)

    called = Called()

    def function(x, *rest):
        held = dict(zip((f"cell.{name}" for name in names), rest[: len(names)], strict=True))
        return functional_call(called, held, (x, *rest[len(names) :]))

    assert torch.autograd.gradcheck(function, (x, *values, *state), fast_mode=True)


@every_case
def test_a_compiled_step_is_the_step(case):
    cell, x = build(case), sequence(2, DIM_IN)
    state = started(cell, 2)
    torch.compiler.reset()
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, state), cell(x, state), rtol=1e-5, atol=1e-6)
    parameters = list(cell.parameters())
    found, expected = (torch.autograd.grad(sum(s.sum() for s in f(x, state)), parameters) for f in (compiled, cell))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


class Given(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        return self.cell.run(x)[0]


@every_case
def test_export(case):
    net, x = Given(build(case)).eval(), sequence(4, 2, DIM_IN)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x), rtol=1e-5, atol=1e-6)


@every_case
def test_bfloat16_autocast_gives_nearly_the_same(case):
    cell, x = build(case), sequence(6, 2, DIM_IN)
    expected = flat(cell.run(x))
    grads = torch.autograd.grad(sum(s.square().sum() for s in expected), list(cell.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        found, step = flat(cell.run(x)), cell(x[0])
        half = torch.autograd.grad(sum(s.float().square().sum() for s in found), list(cell.parameters()))
    torch.testing.assert_close(tuple(s.float() for s in found), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(step[0].float(), cell(x[0])[0], rtol=0.05, atol=0.05)
    largest = max(g.norm() for g in grads)
    for g, b in zip(grads, half, strict=True):
        assert b.dtype == torch.float32
        assert (g - b).norm() < 0.05 * largest


@every_case
def test_seeds_side_by_side(case):
    cells, x = [build(case, seed=s) for s in range(3)], sequence(5, 2, DIM_IN)
    # with what an orthogonal parametrisation is measured from, which is a buffer
    held = [{name: value.detach() for name, value in (*c.named_parameters(), *c.named_buffers())} for c in cells]
    stacked = {name: torch.stack([one[name] for one in held]) for name in held[0]}
    net = Given(cells[0])

    def function(parameters):
        return functional_call(net, {f"cell.{name}": value for name, value in parameters.items()}, (x,))

    together = torch.vmap(function)(stacked)
    for one, cell in zip(together, cells, strict=True):
        torch.testing.assert_close(one, cell.run(x)[0], rtol=1e-5, atol=1e-6)


@every_case
def test_the_factor_on_the_memory_is_a_factor(case):
    cell, x = build(case), sequence(4, 2, DIM_IN)
    factor = cell.carry(cell.project(x)[0], started(cell, 2))
    assert factor.shape == (2, DIM)
    assert (factor >= 0).all()
    assert cell.gate == "" or "gate" in cell.gate


# --- bad input: one sentence, and the numbers in it


@every_case
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.run(torch.zeros(0, 2, DIM_IN)), r"must have a step or more, got \(0, 2, 3\)"),
        (lambda c: c.run(torch.zeros(2, DIM_IN)), r"must be \(steps, batch, dim_in\).*got \(2, 3\)"),
        (lambda c: c(torch.zeros(4, 2, DIM_IN)), r"must be \(batch, dim_in\).*run a sequence"),
        (lambda c: c(torch.zeros(2, 5)), r"dim_in 3, got \(2, 5\)"),
        (lambda c: c(torch.zeros(2, DIM_IN).long()), "must be of floating point, got torch.int64"),
        (lambda c: c(torch.zeros(2, DIM_IN), c.begin(3)), r"shapes .*\(2, 4\).*got .*\(3, 4\)"),
        (lambda c: c(torch.zeros(2, DIM_IN), (*c.begin(2), torch.zeros(2, 4))), "a state must hold tensors of shapes"),
        (lambda c: c(torch.zeros(2, DIM_IN), torch.zeros(2, 4)), "a state must be a tuple of tensors, got Tensor"),
    ],
)
def test_what_does_not_fit_is_said(case, call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call(build(case))
    assert "\n" not in str(caught.value)


@every_case
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(case, bad):
    for name, _ in build(case).named_parameters():
        cell = build(case)
        with torch.no_grad():
            dict(cell.named_parameters())[name].view(-1)[0] = bad
        with pytest.raises(UsageError, match=rf"1 of \d+ numbers in {name.replace('.', '[.]')} that are not"):
            cell.run(sequence(3, 2, DIM_IN))
        with pytest.raises(UsageError, match="must be finite"):
            Recurrent([cell])(sequence(3, 2, DIM_IN))


@every_case
def test_what_is_not_finite_in_the_input_is_not_the_cells(case):
    cell, x = build(case), sequence(3, 2, DIM_IN)
    x[1, 0, 0] = float("nan")
    outputs, _ = cell.run(x)
    assert outputs[:, 0].isnan().any()
    assert outputs[:, 1].isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTM(0, 4), "LSTM: dim_in must be at least 1, got 0"),
        (lambda: GRU(3, 2.5), "GRU: dim must be an integer, got 2.5"),
        (lambda: RNN(3, 4, nonlinearity="gelu"), "nonlinearity must be 'tanh' or 'relu', got 'gelu'"),
        (lambda: RNN(3, 4, start="identity"), "start must be 'uniform' or 'orthogonal', got 'identity'"),
        (lambda: LSTM(3, 4, bias=False, chrono=9.0), "LSTM: chrono sets biases, and bias is False"),
        (lambda: GRU(3, 4, bias=False, chrono=9.0), "GRU: chrono sets biases, and bias is False"),
        (lambda: GRU(3, 4, chrono=1.0), "horizon must be above 2 steps, got 1.0"),
        (lambda: levada.cells.RecurrentHighway(3, 4, depth=0), "depth must be at least 1, got 0"),
        (lambda: levada.cells.Dilated(GRU(3, 4), 0), "dilation must be at least 1, got 0"),
        (lambda: levada.cells.Leaky(GRU(3, 4), 0.0), "rate must be above 0 and at most 1, got 0.0"),
        (lambda: levada.cells.ResidualInTime(nn.GRUCell(3, 4)), "cell must be a Cell"),
        (lambda: levada.cells.ResidualInTime(GRU(3, 4), "much"), "scale must be a number, got 'much'"),
    ],
)
def test_options_that_cannot_be_are_said(make, message):
    with pytest.raises(UsageError, match=message):
        make()
