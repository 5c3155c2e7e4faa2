"""Stacks with stacked parameters: equal to the plain stack in what they compute, what they store and what they say."""

from __future__ import annotations

import copy
import enum
import gc
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import levada
from levada._errors import UsageError
from levada.connection import SingleStream
from levada.connections import HyperConnection, Momentum, Plain, Residual, ReZero, StochasticDepth
from levada.probe.execution import record
from levada.stack import Stack
from levada.stacking import as_layers, parameters_of
from levada.stacking.program import Program

DIM, DEPTH = 6, 5


def branch(dim: int = DIM) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh())


def pair(make=branch, connection=Residual, **options) -> tuple[Stack, Stack]:
    """Return a plain stack and one with the same weights, stacked."""
    torch.manual_seed(0)
    plain = Stack([make() for _ in range(DEPTH)], connection, dim=DIM, **options)
    return plain, copy.deepcopy(plain).arrange(stacked=True)


def gradients(stack: Stack, x: Tensor) -> dict[str, Tensor]:
    stack.zero_grad()
    x = x.detach().requires_grad_()
    torch.manual_seed(1)
    y = stack(x)
    y.square().sum().backward()
    with as_layers(stack):
        return {"output": y, "input": x.grad} | {
            n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in stack.named_parameters()
        }


def is_recorded(stack: Stack) -> bool:
    node = stack(torch.randn(3, DIM, dtype=next(stack.parameters()).dtype)).grad_fn
    while node is not None and type(node).__name__ != "LayersBackward":
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None


@pytest.fixture
def batch() -> Tensor:
    return torch.randn(3, DIM, generator=torch.Generator().manual_seed(7))


# --- what is computed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [Plain, Residual, ReZero, HyperConnection])
def test_equals_the_plain_stack(connection, batch):
    plain, stacked = pair(connection=connection)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=0, atol=0)
    assert is_recorded(stacked)
    with torch.no_grad():
        assert torch.equal(stacked(batch), plain(batch))


@pytest.mark.parametrize("segments", [1, 2, DEPTH, True])
def test_checkpointing_gives_the_same(segments, batch):
    plain, stacked = pair()
    stacked.arrange(checkpoint=segments)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=0, atol=0)


def test_checkpointing_keeps_the_first_states_alone(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()))
    kept = [
        sum(len(row) for *_, rows in stacked.arrange(checkpoint=c)(batch).grad_fn.segments for row in rows)
        for c in (0, 2)
    ]
    assert kept == [4, 0]  # two chunks: states, and what tanh returned


@pytest.mark.parametrize("checkpoint", [False, 2])
def test_dropout_draws_what_the_plain_stack_draws(checkpoint, batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    stacked.arrange(checkpoint=checkpoint)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    assert is_recorded(stacked)
    stacked.eval(), plain.eval()
    assert torch.equal(stacked(batch), plain(batch))


NARROW = {
    "relu": nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()),
    "mlp": nn.Sequential(nn.Linear(DIM, 3 * DIM), nn.ReLU(), nn.Linear(3 * DIM, DIM)),
    "gelu": nn.Sequential(nn.Linear(DIM, 3 * DIM), nn.GELU(), nn.Linear(3 * DIM, DIM)),
    "no bias": nn.Linear(DIM, DIM, bias=False),
}


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("connection", [Plain, Residual, HyperConnection])
def test_gradients_of_a_chunk_of_layers_are_those_of_each(kind, connection, batch):
    plain, stacked = pair(lambda: copy.deepcopy(NARROW[kind]), connection)
    plain.double(), stacked.double()
    for x in (batch.double(), torch.randn(5, DIM, dtype=torch.float64), batch.double()[None]):
        for segments in (0, 2):
            stacked.arrange(checkpoint=segments)
            for _ in range(2):  # again in the same memory
                torch.testing.assert_close(gradients(stacked, x), gradients(plain, x), rtol=1e-12, atol=1e-12)
    assert is_recorded(stacked)


def test_gradients_of_narrow_layers_are_made_a_chunk_at_once(batch):
    _, stacked = pair(lambda: copy.deepcopy(NARROW["relu"]))
    stacked(batch)
    (program,) = stacked.stacked.cache["runner"].programs.values()
    assert [written.whole for written in program.written] == [True, True]
    stacked(torch.randn(2**14, DIM))  # of these it would take no less time, and memory
    assert [written.whole for written in [*stacked.stacked.cache["runner"].programs.values()][1].written] == [False] * 2


def test_memory_of_a_chunk_is_not_used_twice_at_once(batch):
    plain, stacked = pair(lambda: copy.deepcopy(NARROW["relu"]))
    other, weight = 2 * batch, stacked.stacked.branch.get_submodule("0").weight
    expected = [torch.autograd.grad(plain(x).square().sum(), list(plain.parameters())) for x in (batch, other)]
    stacked(batch).sum().backward()  # leaves memory to use again
    first, second = stacked(batch).square().sum(), stacked(other).square().sum()
    found = [torch.autograd.grad(y, weight, retain_graph=True)[0] for y in (first, second, first)]
    third = stacked(other).square().sum()  # while both graphs are kept
    found += [torch.autograd.grad(y, weight)[0] for y in (second, third, first)]
    for gradient, place in zip(found, (0, 1, 0, 1, 1, 0), strict=True):
        torch.testing.assert_close(gradient, torch.stack([g for g in expected[place] if g.dim() == 2]))


class Gated(nn.Linear):
    """Reads what its first operation returned twice: before and after an operation that could write over it."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h.relu() * h


def test_nothing_is_written_over_that_is_read_later(batch):
    plain, stacked = pair(lambda: Gated(DIM, DIM))
    assert is_recorded(stacked)
    with torch.no_grad():
        assert torch.equal(stacked(batch), plain(batch))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


@pytest.mark.parametrize("connection", [Plain, Residual])
@pytest.mark.parametrize("kind", NARROW)
def test_what_goes_in_and_comes_out_is_memory_of_its_own(connection, kind, batch):
    plain, stacked = pair(lambda: copy.deepcopy(NARROW[kind]), connection)
    given, cotangent = batch.clone().requires_grad_(), torch.ones_like(batch)
    y = stacked(given)
    output = y.detach().clone()
    (gradient,) = torch.autograd.grad(y, given, cotangent)
    held = gradient.clone()
    stacked(2 * batch).sum().backward()  # in the same memory
    assert torch.equal(y, output)
    assert torch.equal(gradient, held)
    assert torch.equal(given, batch)
    assert torch.equal(cotangent, torch.ones_like(batch))
    torch.testing.assert_close(gradient, torch.autograd.grad(plain(given).sum(), given)[0])


def test_what_is_drawn_while_recording_is_given_back(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    first, second = (gradients(stacked, batch)["output"] for _ in range(2))
    assert torch.equal(first, second)


def test_recording_seeds_no_device_that_is_not_in_use(batch, monkeypatch):
    seeded: list[object] = []
    for device in (torch.cuda, torch.xpu, torch.mps):
        for name in {"manual_seed", "manual_seed_all"} & {*dir(device)}:
            monkeypatch.setattr(device, name, seeded.append)
    before = torch.get_rng_state()
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    seeded.clear()  # of `pair`
    torch.set_rng_state(before)
    stacked.eval()(batch)
    assert isinstance(stacked.stacked.cache["runner"].programs.popitem()[1], Program)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


def test_running_statistics_stay_with_their_layers(batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU()))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stacked.state_dict(), plain.state_dict(), rtol=0, atol=0)
    stacked.eval(), plain.eval()
    assert is_recorded(stacked)
    assert torch.equal(stacked(batch), plain(batch))


@pytest.mark.parametrize(
    "held", [(None, torch.zeros(DIM)), (torch.zeros(DIM), None), (torch.ones(DIM), torch.ones(DIM, dtype=torch.int64))]
)
def test_a_buffer_of_another_kind_is_recorded_again(held, batch):
    class Masked(nn.Linear):
        mask: Tensor | None

        def __init__(self) -> None:
            super().__init__(DIM, DIM)
            self.register_buffer("mask", None)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if self.mask is None else self.mask)

    plain, stacked = pair(Masked)
    for mask in held:
        for stack in (plain, stacked):
            for layer in stack:
                layer.branch.mask = mask
        assert is_recorded(stacked)
        assert torch.equal(stacked(batch), plain(batch))
    plain[2].branch.mask = stacked[2].branch.mask = torch.full((1,), 2.0)
    with pytest.warns(UserWarning, match="buffers of one name differ"):
        assert torch.equal(stacked(batch), plain(batch))


def test_autocast(batch):
    plain, stacked = pair()
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = gradients(plain, batch), gradients(stacked, batch)
        assert is_recorded(stacked)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_frozen_parameters_get_no_gradient(batch):
    plain, stacked = pair()
    for layer in plain:
        layer.branch[1].weight.requires_grad_(False)
    stacked.stacked.branch.get_submodule("1").weight.requires_grad_(False)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    "part",
    [
        lambda stack: stack[0],
        lambda stack: stack[3].branch,
        lambda stack: stack[3].branch[1],
        lambda stack: stack[3].connection,
        lambda stack: stack.layers,
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_part_that_is_frozen_is_an_error(part, requires_grad, batch):
    _, stacked = pair(connection=ReZero)
    for stack in (stacked, copy.deepcopy(stacked), pickle.loads(pickle.dumps(stacked))):
        for _ in range(2):
            with pytest.raises(UsageError, match=rf"got requires_grad_\({requires_grad}\) .* arrange\(stacked=False\)"):
                part(stack).requires_grad_(requires_grad)
            stack.state_dict()  # goes by layer
        with as_layers(stack):
            part(stack).requires_grad_(True)
    assert is_recorded(stacked)
    stacked.arrange(stacked=False)
    part(stacked).requires_grad_(False)
    assert {p.requires_grad for p in part(stacked).parameters()} == {False}


def test_all_layers_can_be_frozen_together(batch):
    plain, stacked = pair()
    for freeze in (stacked.requires_grad_, stacked.stacked.requires_grad_, nn.Sequential(stacked).requires_grad_):
        freeze(False)
        assert not any(p.requires_grad for p in stacked.parameters())
        assert torch.equal(stacked(batch), plain(batch))
        freeze(True)
        assert is_recorded(stacked)
    stacked[0].branch[2].requires_grad_(False)  # has nothing to freeze


def test_gradients_of_gradients(batch):
    plain, stacked = pair()
    found = []
    for stack in (plain, stacked):
        x = batch.clone().requires_grad_()
        (first,) = torch.autograd.grad(stack(x).square().sum(), x, create_graph=True)
        first.square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_gradcheck():
    _, stacked = pair()
    stacked.double()
    assert torch.autograd.gradcheck(stacked, torch.randn(2, DIM, dtype=torch.float64, requires_grad=True))


def test_a_graph_that_is_kept_goes_backward_twice(batch):
    _, stacked = pair()
    y = stacked(batch).sum()
    weight = stacked.stacked.branch.get_submodule("1").weight
    first = torch.autograd.grad(y, weight, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(y, weight))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_an_output_that_is_needed_must_not_be_changed(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), Plain)
    y = stacked(batch)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_weights_that_changed_before_the_backward_pass_are_an_error(batch):
    _, stacked = pair()
    y = stacked(batch).sum()
    with torch.no_grad():
        stacked.stacked.branch.get_submodule("1").weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_memory_of_gradients_is_used_again_once_they_are_gone(batch, monkeypatch):
    monkeypatch.setattr("levada.stacking.function._LARGE", 0)
    _, stacked = pair()
    weight = stacked.stacked.branch.get_submodule("1").weight

    def gradient() -> Tensor:
        stacked.zero_grad()
        stacked(batch).square().sum().backward()
        return weight.grad

    first = gradient()
    value = first.clone()
    second = gradient()  # while the first is still held
    place = second.data_ptr()
    assert first.data_ptr() != place
    assert torch.equal(first, value)
    del second
    assert gradient().data_ptr() == place
    stacked(batch).square().sum().backward()  # accumulated
    torch.testing.assert_close(weight.grad, 2 * value)


def test_nothing_is_kept_alive(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()), Plain)
    x = batch.clone().requires_grad_()
    gc.disable()
    try:
        y = stacked(x)
        gone = weakref.ref(y.grad_fn)
        del y
        assert gone() is None
    finally:
        gc.enable()


def test_other_shapes_and_functional_calls(batch):
    plain, stacked = pair()
    for x in (batch, batch[:2], torch.randn(2, 4, DIM)):
        assert torch.equal(stacked(x), plain(x))
    doubled = {n: 2 * p.detach() for n, p in stacked.named_parameters()}
    expected = torch.func.functional_call(plain, {n: 2 * p.detach() for n, p in plain.named_parameters()}, batch)
    torch.testing.assert_close(torch.func.functional_call(stacked, doubled, batch), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # what torch loads for jvp says so
def test_transforms_run_the_layers_as_they_are_written(batch):
    plain, stacked = pair()
    torch.testing.assert_close(torch.func.jacrev(stacked)(batch), torch.func.jacrev(plain)(batch))
    torch.testing.assert_close(torch.func.jvp(stacked, (batch,), (batch,)), torch.func.jvp(plain, (batch,), (batch,)))
    torch.testing.assert_close(torch.func.vmap(stacked)(batch), plain(batch))


# --- layers that do not all do the same -----------------------------------------------------------------------------


class PerLayer(SingleStream):
    """Reads which layer it is."""

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        return state + out / (1 + self.layer)


class Counting(nn.Linear):
    """Does something else at each call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) / self.calls


class Deciding(nn.Linear):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class Hidden(nn.Linear):
    """Computes where no dispatcher sees it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.empty_like(x)
            y.numpy()[:] = x.numpy() ** 2
        return super().forward(x) * y


class Fixed(nn.Linear):
    """Holds a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.by = torch.rand(())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.by


class Editing(nn.Linear):
    """Writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


@pytest.mark.parametrize(
    ("make", "connection", "why"),
    [
        (branch, PerLayer, "something else in each layer"),
        (branch, StochasticDepth, "'survival' is not the same"),
        (lambda: Deciding(DIM, DIM), Residual, "depends on values|gives Python a number"),
        (lambda: Counting(DIM, DIM), Residual, "changes an attribute"),
        (lambda: Hidden(DIM, DIM), Residual, "run again, give something else"),
        (Fixed, Residual, "'by' holds a Tensor"),
    ],
)
def test_layers_that_differ_run_one_by_one_and_say_why(make, connection, why, batch):
    plain, stacked = pair(make, connection)
    with pytest.warns(UserWarning, match=why):
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch))
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch))


def test_a_stream_that_is_written_into_is_left_to_autograd(batch):
    _, stacked = pair(lambda: Editing(DIM, DIM), Plain)
    with pytest.warns(UserWarning, match="writes into its state"), torch.no_grad():
        stacked(batch.clone())


def test_a_setting_that_changes_later_counts(batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        for layer in stack:
            layer.branch[1].p = 0.9
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    stacked[3].branch[1].p = plain[3].branch[1].p = 0.1
    with pytest.warns(UserWarning, match="'p' is not the same"):
        found = gradients(stacked, batch)
    torch.testing.assert_close(found, gradients(plain, batch))
    stacked[2].eval(), plain[2].eval()
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


class Scaled(nn.Linear):
    """Asks what it was given how to scale."""

    def __init__(self, scale) -> None:
        super().__init__(DIM, DIM)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * by(self.scale)


class Setting:
    """What configurations are: attributes, and a call."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self) -> float:
        return self.value

    def __deepcopy__(self, memo):
        return self


def by(scale):
    if isinstance(scale, Setting):
        return scale.value
    if isinstance(scale, list | tuple):
        return by(scale[0])
    if isinstance(scale, dict):
        return by(scale["by"])
    if isinstance(scale, np.ndarray):
        return scale.item()
    return scale() if callable(scale) else scale


@pytest.mark.parametrize(
    ("give", "kind"),
    [
        (lambda setting: setting, "Setting"),
        (lambda setting: [setting], "Setting"),
        (lambda setting: {"by": (setting,)}, "Setting"),
        (lambda setting: setting.__call__, "method"),
        (lambda setting: lambda: setting.value, "Setting"),
        (lambda setting: lambda held=setting: held.value, "Setting"),
    ],
)
def test_objects_that_may_change_unseen_are_not_recorded(give, kind, batch):
    setting = Setting(2.0)
    given = give(setting)  # one for all layers
    plain, stacked = (Stack([Scaled(given) for _ in range(DEPTH)], Residual, dim=DIM, stacked=s) for s in (False, True))
    stacked.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match=f"Scaled: 'scale' holds a {kind}, in which a change would not be seen"):
        assert torch.equal(stacked(batch), plain(batch))
    setting.value = 0.0
    assert torch.equal(stacked(batch), batch)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("make", [lambda: torch.ones(DIM), lambda: np.ones(1), lambda: torch.ones(())])
def test_tensors_that_are_no_buffers_are_not_recorded(make, share, batch):
    held = [make()] * DEPTH if share else [make() for _ in range(DEPTH)]
    plain, stacked = (Stack([*map(Scaled, held)], Residual, dim=DIM, stacked=s) for s in (False, True))
    stacked.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match=r"'scale' holds a (Tensor|ndarray)"):
        assert torch.equal(stacked(batch), plain(batch))
    for tensor in held:
        tensor *= 0
    assert torch.equal(stacked(batch), batch)


@pytest.mark.parametrize("before", [None, 0])
def test_a_tensor_that_is_made_at_the_first_call_is_not_recorded(before, batch):
    class Lazy(nn.Linear):
        cache: Tensor | int | None

        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(self.cache, Tensor):
                self.cache = torch.full((DIM,), 2.0)
            return super().forward(x) * self.cache

    def make() -> nn.Module:
        made = Lazy(DIM, DIM)
        made.cache = before
        return made

    plain, stacked = pair(make)
    with pytest.warns(UserWarning, match="changes an attribute of its own"):
        torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


class Power(enum.Enum):
    ONE, TWO = 1.0, 2.0

    def __call__(self) -> float:
        return self.value


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1.0, 2.0),
        (0.0, -0.0),
        (np.float64(0.5), np.float64(0.25)),
        ([1.0], [2.0]),
        ({"by": 1.0}, {"by": 2.0}),
        (Power.ONE, Power.TWO),
        (lambda: 1.0, lambda: 2.0),
    ],
)
def test_what_cannot_change_unseen_is_recorded_again_when_it_changes(before, after, batch):
    plain, stacked = (Stack([Scaled(before) for _ in range(DEPTH)], Plain, dim=DIM, stacked=s) for s in (False, True))
    stacked.load_state_dict(plain.state_dict())
    for given in (before, after):
        for stack in (plain, stacked):
            for layer in stack:
                layer.branch.scale = given
        assert is_recorded(stacked)
        assert torch.equal(1 / stacked(batch), 1 / plain(batch))  # with the sign of zero


def test_a_setting_that_changes_in_place_counts(batch):
    plain, stacked = pair(lambda: Scaled({"by": [1.0]}))
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        for layer in stack:
            layer.branch.scale["by"][0] = 0.0
    assert is_recorded(stacked)
    assert torch.equal(stacked(batch), batch)


def test_a_module_that_is_replaced_counts(batch):
    plain, stacked = pair()
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        stack[1].branch[2] = nn.ReLU()
    with pytest.warns(UserWarning, match="the tree of modules"):
        assert torch.equal(stacked(batch), plain(batch))


def test_layers_in_another_order_count(batch):
    plain, stacked = pair()
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        stack.layers[0], stack.layers[3] = stack.layers[3], stack.layers[0]
    with pytest.warns(UserWarning, match="the tree of modules"):
        assert torch.equal(stacked(batch), plain(batch))


def test_hooks_see_every_layer_without_a_word(batch):
    plain, stacked = pair()
    seen: list[Tensor] = []
    handle = stacked[2].branch[1].register_forward_hook(lambda module, args, y: seen.append(y))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    assert len(seen) == 1
    handle.remove()
    assert is_recorded(stacked)


def test_hooks_that_are_not_called_in_a_pass_do_not_count(batch):
    _, stacked = pair()
    stacked.layers[2].branch.register_state_dict_post_hook(lambda *_: None)
    assert is_recorded(stacked)


def test_arguments_go_to_every_branch(batch):
    class Shift(nn.Linear):
        def forward(self, x: Tensor, by: float) -> Tensor:
            return super().forward(x) + by

    plain, stacked = pair(lambda: Shift(DIM, DIM))
    assert torch.equal(stacked(batch, 2.0), plain(batch, 2.0))


# --- what cannot be stacked -----------------------------------------------------------------------------------------


def test_parameters_must_be_alike():
    wide = [nn.Sequential(nn.Linear(DIM, w), nn.Linear(w, DIM)) for w in (3, 4)]
    with pytest.raises(UsageError, match=r"'branch\.0\.weight' is \(3, 6\) .* in layer 0 and \(4, 6\)"):
        Stack(wide, Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match=r"'branch\.1\.bias' is missing in layer 0"):
        Stack(
            [nn.Sequential(nn.Tanh(), nn.Linear(DIM, DIM, bias=b)) for b in (False, True)],
            Residual,
            dim=DIM,
            stacked=True,
        )
    with pytest.raises(UsageError, match="share no parameter"):
        Stack([nn.Linear(DIM, DIM)] * 2, Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match="these have none"):
        Stack([nn.Identity()], Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match="holds them in '_flat_weights'"):
        Stack([nn.LSTM(DIM, DIM) for _ in range(2)], Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match="UninitializedParameter"):
        Stack([nn.LazyLinear(DIM) for _ in range(2)], Residual, dim=DIM, stacked=True)


def test_what_does_not_go_with_stacking_is_refused(batch):
    with pytest.raises(UsageError, match="not compiled"):
        Stack([branch()], Residual, dim=DIM, stacked=True, compile=True)
    _, stacked = pair(connection=Momentum)
    with pytest.raises(UsageError, match="recompute=False"):
        stacked(batch)
    _, stacked = pair()
    with pytest.raises(UsageError, match="'weight' for layer 2"):
        stacked[2].branch[1].weight = nn.Parameter(torch.ones(DIM, DIM))
    with pytest.raises(UsageError, match="one by one"):
        del stacked[2].branch[1].weight


# --- what is stored -------------------------------------------------------------------------------------------------


def test_optimizers_are_given_one_tensor_of_each_kind():
    plain, stacked = pair()
    shapes = {n: tuple(p.shape) for n, p in stacked.named_parameters()}
    assert shapes["stacked.branch.1.weight"] == (DEPTH, DIM, DIM)
    assert len(shapes) == 4
    assert sum(p.numel() for p in stacked.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_training_goes_as_that_of_the_plain_stack(optimizer, batch):
    plain, stacked = pair()
    for stack in (plain, stacked):
        steps = optimizer(stack.parameters(), lr=0.1)
        for _ in range(3):
            steps.zero_grad()
            stack(batch).square().sum().backward()
            nn.utils.clip_grad_norm_(stack.parameters(), 0.5)
            steps.step()
    torch.testing.assert_close(stacked.state_dict(), plain.state_dict())


def test_states_go_from_one_to_the_other(batch):
    plain, stacked = pair()
    assert list(stacked.state_dict()) == list(plain.state_dict())
    other = Stack([branch() for _ in range(DEPTH)], Residual, dim=DIM, stacked=True)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(batch), plain(batch))
    back = Stack([branch() for _ in range(DEPTH)], Residual, dim=DIM)
    back.load_state_dict(other.state_dict())
    assert torch.equal(back(batch), plain(batch))
    outer = nn.Sequential(nn.Linear(DIM, DIM), other)
    assert "1.layers.0.branch.1.weight" in outer.state_dict()
    outer.load_state_dict(outer.state_dict(), assign=True)
    assert torch.equal(other(batch), plain(batch))
    assert is_recorded(other)


def test_loading_is_strict():
    plain, stacked = pair()
    state = plain.state_dict()
    state["layers.3.branch.1.bias"] = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"size mismatch for layers\.3\.branch\.1\.bias"):
        stacked.load_state_dict(state)
    del state["layers.3.branch.1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.3\.branch\.1\.bias"):
        stacked.load_state_dict(state)
    assert isinstance(stacked.stacked, nn.Module)
    assert is_recorded(stacked)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_have_parameters_of_their_own(way, batch):
    _, stacked = pair()
    expected = stacked(batch)
    if way == "deepcopy":
        other = copy.deepcopy(stacked)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(stacked))
    else:
        file = io.BytesIO()
        torch.save(stacked, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in stacked.parameters():
            parameter.zero_()
    assert torch.equal(other(batch), expected)
    assert is_recorded(other)
    assert torch.equal(other[2].branch[1].weight, other.stacked.branch.get_submodule("1").weight[2])


def test_a_layers_parameters_are_its_slices():
    _, stacked = pair()
    weight = stacked.stacked.branch.get_submodule("1").weight
    with torch.no_grad():
        nn.init.constant_(stacked[3].branch[1].weight, 5.0)
    assert weight[3].eq(5).all()
    assert not weight[2].eq(5).any()
    stacked[1](torch.randn(2, DIM)).square().sum().backward()  # a layer by itself: its gradient arrives too
    assert weight.grad[1].abs().sum() > 0
    assert weight.grad[[0, 2, 3, 4]].eq(0).all()
    assert list(stacked[1].parameters()) == []
    names = [n for n, _ in parameters_of(stacked)]
    assert names == [n for n, _ in pair()[0].named_parameters()]


def test_what_arrives_by_layer_is_gathered(batch):
    plain, stacked = pair()
    plain(batch).square().sum().backward()
    with as_layers(stacked):
        assert [n for n, _ in stacked.named_parameters()] == [n for n, _ in plain.named_parameters()]
        stacked(batch).square().sum().backward()
    weight = stacked.stacked.branch.get_submodule("1").weight
    assert torch.equal(weight.grad, torch.stack([layer.branch[1].weight.grad for layer in plain]))
    with as_layers(stacked):
        for parameter in stacked.parameters():
            parameter.grad = None
    assert weight.grad is None


def test_moving_and_going_back(batch):
    plain, stacked = pair()
    stacked.double(), plain.double()
    assert torch.equal(stacked(batch.double()), plain(batch.double()))
    stacked(batch.double()).sum().backward(), plain(batch.double()).sum().backward()
    stacked.arrange(stacked=False)
    assert [n for n, _ in stacked.named_parameters()] == [n for n, _ in plain.named_parameters()]
    torch.testing.assert_close([p.grad for p in stacked.parameters()], [p.grad for p in plain.parameters()])
    assert torch.equal(stacked(batch.double()), plain(batch.double()))


# --- what the library says of it ------------------------------------------------------------------------------------


def test_parameter_groups_are_those_of_the_plain_stack():
    plain, stacked = pair(connection=HyperConnection)
    expected, found = ({g["name"]: g for g in levada.parameter_groups(s)} for s in (plain, stacked))
    assert expected.keys() == found.keys()
    for name, group in found.items():
        assert group["weight_decay"] == expected[name]["weight_decay"]
        assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in expected[name]["params"])
        assert {id(p) for p in group["params"]} <= {id(p) for p in stacked.parameters()}
    with pytest.raises(UsageError, match="Muon takes matrices"):
        levada.parameter_groups(stacked, optimizer="muon")


def test_check_says_the_same(batch):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(DIM, DIM), nn.Sigmoid())

    plain, stacked = pair(make, Plain)
    expected, found = (
        levada.check(nn.Sequential(s, nn.Linear(DIM, 2)), batch) for s in map(copy.deepcopy, (plain, stacked))
    )
    assert found.verdict == expected.verdict
    assert [b["site"] for b in found.blocks][:DEPTH] == [f"0.layers.{i}" for i in range(DEPTH)]
    assert [f.rule for f in found.findings] == [f.rule for f in expected.findings]
    before = copy.deepcopy(stacked.state_dict())
    expected, found = (levada.check(s, (batch, batch.tanh()), loss="mse").blocks for s in (plain, stacked))
    assert len(found) == DEPTH
    for block, other in zip(found, expected, strict=True):
        assert block.keys() == other.keys()
        assert {"gradient_rms", "cotangent_rms", "update_ratio"} <= block.keys()
        numbers = {key: value for key, value in other.items() if isinstance(value, float)}
        assert {key: block[key] for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-9)
    torch.testing.assert_close(stacked.state_dict(), before, rtol=0, atol=0)
    assert is_recorded(stacked)


def test_the_probe_measures_the_same(batch):
    traces = []
    for stack in pair():
        optimizer = torch.optim.AdamW(stack.parameters(), lr=0.01, eps=0.5)
        with levada.Probe(stack, optimizer, every=2, noise=True) as probe:
            for _ in range(5):
                optimizer.zero_grad()
                stack(batch).square().sum().backward()
                optimizer.step()
        traces.append(probe.trace())
    plain, stacked = traces
    assert stacked.names() == plain.names()
    assert [s.parameters for s in stacked.sites] == [s.parameters for s in plain.sites]
    assert stacked.values.keys() == plain.values.keys()
    assert plain["eps_fraction"][-1].unique().numel() > 2  # which differ, by layer
    torch.testing.assert_close(dict(stacked.values), dict(plain.values), equal_nan=True, rtol=1e-4, atol=1e-6)
    assert is_recorded(pair()[1])


def test_a_recorded_pass_names_the_parameters_that_layers_read(batch):
    plain, stacked = (record(stack, lambda stack=stack: stack(batch)) for stack in pair(connection=HyperConnection))
    assert stacked.sites == plain.sites
    told = [
        {
            block: [(op.kind, op.name, op.module, op.parameters, op.shape) for op in operations]
            for block, operations in execution.operations.items()
        }
        for execution in (plain, stacked)
    ]
    assert told[0] == told[1]
    assert ("layers.2.branch.1.weight", "layers.2.branch.1.bias") in [op[3] for op in told[1]["layers.2"]]


def test_watching_measures_the_same(batch):
    told = []
    for stack in pair():
        optimizer = torch.optim.SGD(stack.parameters(), lr=0.01)
        with levada.watch(stack, optimizer, every=1, max_overhead=1.0) as watching:
            for _ in range(3):
                optimizer.zero_grad()
                stack(batch).square().sum().backward()
                optimizer.step()
        told.append((watching.sites, dict(watching.samples[-1].values)))
    (sites, values), (found_sites, found) = told
    assert found_sites == sites
    assert len(sites) == DEPTH
    torch.testing.assert_close(found, values, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_what_needs_layers_that_hold_their_own_says_so():
    _, stacked = pair(connection=HyperConnection)
    for ask in (levada.shard_connections, lambda model: levada.convert(model, levada.ReZero)):
        with pytest.raises(UsageError, match=r"arrange\(stacked=False\)"):
            ask(nn.Sequential(nn.Linear(DIM, DIM), stacked))
