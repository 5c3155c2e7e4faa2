"""Models that are written in ways of their own: each addition is converted and learns, or is said to stay."""

from __future__ import annotations

import copy
import dataclasses
import operator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import levada
from levada._errors import UsageError
from levada.conversion import convert, verify_preserved

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
HC, MHC = levada.HyperConnection, levada.ManifoldHyperConnection


class Branch(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear(self.norm(x)).tanh()


class Residual(Branch):
    def forward(self, x):
        return x + super().forward(x)


class Loop(nn.Module):
    def __init__(self, step, depth=4):
        super().__init__()
        self.embed, self.drop = nn.Linear(16, 16), nn.Dropout(0.1)
        self.branches, self.step = nn.ModuleList(Branch() for _ in range(depth)), step

    def forward(self, x):
        x = self.embed(x)
        for branch in self.branches:
            x = self.step(self, x, branch)
        return x


def in_place(model, x, branch):
    x.add_(branch(x))
    return x


def by_hand(model, x, branch):
    return x + branch(x / ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt())


STEPS = {
    "dropout after the addition": lambda m, x, b: m.drop(x + b(x)),
    "the function dropout": lambda m, x, b: F.dropout(x + b(x), 0.1, m.training),
    "dropout before the branch": lambda m, x, b: x + b(m.drop(x)),
    "contiguous": lambda m, x, b: (x + b(x)).contiguous(),
    "to": lambda m, x, b: (x + b(x)).to(x.dtype),
    "type_as": lambda m, x, b: (x + b(x)).type_as(x),
    "requires_grad_": lambda m, x, b: (x + b(x)).requires_grad_(),
    "keywords": lambda m, x, b: torch.add(input=x, other=b(x)),
    "a keyword of the method": lambda m, x, b: x.add(other=b(x)),
    "in place, not returned": in_place,
    "the branch first": lambda m, x, b: b(x) + x,
    "powers and divisions": by_hand,
    "comparisons": lambda m, x, b: x + b(torch.where(x > 0, x, 1 / (1 + x.abs()))),
    "operators from the right": lambda m, x, b: x + b(2**x - 1 / (2 + abs(x))),
}


def require_alive(net: nn.Module, batch, connections: int) -> None:
    """Each connection, moved by itself, changes the output; and each gets a gradient, also in training."""
    made = [m for m in net.modules() if isinstance(m, levada.Connection)]
    assert len(made) == connections
    run = lambda: net(**batch) if isinstance(batch, dict) else net(batch)  # noqa: E731
    with torch.no_grad():
        before = run()
        for connection in made:
            held = connection.static_write.clone()
            connection.static_write.mul_(1.5)
            assert (run() - before).abs().max() > 1e-6, "dead"
            connection.static_write.copy_(held)
    net.train()
    run().square().sum().backward()
    assert all(m.static_write.grad is not None for m in made)


@pytest.mark.parametrize("step", STEPS)
def test_every_way_to_write_a_loop(step):
    torch.manual_seed(0)
    model = Loop(STEPS[step]).eval()
    net = convert(model, HC, batch=X)
    assert net.levada_conversion.difference <= 1e-12
    torch.testing.assert_close(net(X), model(X))
    require_alive(net, X, 4)


def test_dropout_on_the_stream_acts_in_training_only_and_is_refused_where_it_has_no_place():
    net = convert(Loop(STEPS["dropout after the addition"]), HC, batch=X).train()
    assert not torch.equal(net(X), net(X))
    assert torch.equal(net.eval()(X), net(X))
    with pytest.raises(UsageError, match="goes through dropout, which DepthWeightedAverage has no place for"):
        convert(Loop(STEPS["dropout after the addition"]), levada.DepthWeightedAverage, batch=X)
    convert(Loop(STEPS["contiguous"]), levada.DepthWeightedAverage, batch=X)


class Lost(nn.Module):
    """Its additions are on the stream, as plain operations see it, and then again not: a custom function in between."""

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def __init__(self):
        super().__init__()
        self.embed, self.branches = nn.Linear(16, 16), nn.ModuleList(Branch() for _ in range(3))

    def forward(self, x):
        x = self.embed(x)
        for branch in self.branches:
            y = x + branch(x)
            x = y if type(y) is Tensor else y.tensor()  # gives the stream up, whatever is asked of it
        return x


def test_connections_that_nothing_writes_to_are_refused_by_the_name_of_the_block():
    model = Lost()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="addition of the model, number 2 of 3, is not made on the stream"):
        convert(model, HC, batch=X, copy=False)
    assert model.state_dict().keys() == before.keys()
    assert not any("levada" in key for m in model.modules() for key in vars(m))


class Encoder(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.branches, self.norm = nn.ModuleList(Branch() for _ in range(depth)), nn.LayerNorm(16)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return self.norm(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.middle = Encoder(), nn.Linear(16, 16)

    def forward(self, x):
        return self.encoder(self.middle(self.encoder(x)).tanh())


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x):
        return self.encoder(x) * self.encoder(x.flip(0))


@pytest.mark.parametrize("make", [Twice, Siamese])
def test_a_module_that_runs_twice_has_its_connections_once(make):
    net = convert(make().eval(), HC, batch=X)
    assert net.levada_conversion.description == "3 additions in encoder, width 16"
    assert net.levada_conversion.left_out == ()
    require_alive(net, X, 3)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_encoder_and_decoder_are_both_converted():
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True, norm_first=True).eval()
    batch = {"src": X, "tgt": X.flip(1)}
    net = convert(model, HC, batch=batch)
    assert net.levada_conversion.left_out == ()
    assert "4 additions in encoder.layers.0" in net.levada_conversion.description
    assert "6 additions in decoder.layers.0" in net.levada_conversion.description
    require_alive(net, batch, 10)


def test_blocks_in_containers_hold_their_own_connections():
    blocks = [nn.Sequential(Residual(), nn.Dropout(0.1), Residual()) for _ in range(2)]
    model = nn.Sequential(nn.Linear(16, 16), *blocks, nn.LayerNorm(16)).eval()
    net = convert(model, HC, batch=X)
    assert net.levada_conversion.sites == ("1.0", "1.2", "2.0", "2.2")
    require_alive(net, X, 4)


class Named(Residual):
    """Has connections of its own, which are no business of conversion."""

    def __init__(self):
        super().__init__()
        self.connections = nn.ModuleList([nn.Linear(16, 16)])

    def forward(self, x):
        return x + self.connections[-1](super(Residual, self).forward(x))


def test_names_that_are_taken_stay_what_they_are():
    model = nn.Sequential(nn.Linear(16, 16), Named(), Named()).eval()
    net = convert(model, HC, batch=X)
    assert [len(block.connections) for block in (net[1], net[2])] == [1, 1]
    require_alive(net, X, 2)


class Channels(nn.Module):
    """A block of images whose branch begins with a normalisation of the channels, which it puts last and back."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.convolution = nn.LayerNorm(dim), nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        return x + self.convolution(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("size", [4, 8], ids=["other sizes", "as many pixels as channels"])
def test_channels_are_found_whatever_comes_first(size):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Channels(8), Channels(8)).eval()
    net = convert(model, HC, batch=torch.randn(2, 3, size, size))
    assert [m.dim for m in net.modules() if isinstance(m, levada.Connection)] == [8, 8]
    x = torch.randn(2, 3, 7, 5)  # other sizes than in conversion
    torch.testing.assert_close(net(x), model(x))


class Scaled(Residual):
    """Adds to the scaled stream, as some models do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x):
        return x * self.scale + Branch.forward(self, x)


def test_additions_to_something_made_of_the_stream_are_said():
    model = nn.Sequential(nn.Linear(16, 16), Residual(), Residual(), Scaled()).eval()
    net = convert(model, HC, batch=X)
    assert net.levada_conversion.left_out == (
        "The addition of 3 stays: what it adds to is made from the stream, by torch.Tensor.mul.",
    )
    with pytest.raises(UsageError, match=r"no block of the model adds.*The addition of 1 stays"):
        convert(nn.Sequential(nn.Linear(16, 16), Scaled()), HC, batch=X)


class Parallel(nn.Module):
    """Two branches of one input, as in GPT-J and Cohere."""

    def __init__(self, sum_up):
        super().__init__()
        self.norm, self.sum_up = nn.LayerNorm(16), sum_up
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        h = self.norm(x)
        return self.sum_up(x, self.a(h), self.b(h), self.c(h))


@pytest.mark.parametrize(
    "sum_up", [lambda x, a, b, c: x + a + b, lambda x, a, b, c: a + x + b, lambda x, a, b, c: c + (x + a + b)]
)
def test_parallel_branches_that_are_added_in_steps_are_named(sum_up):
    with pytest.raises(
        UsageError, match=r"1 adds a second branch of the same input.* Write x \+ \(a\(x\) \+ b\(x\)\)"
    ) as e:
        convert(
            nn.Sequential(nn.Linear(16, 16), *[Parallel(sum_up) for _ in range(3)]), levada.HyperConnection, batch=X
        )
    assert "made from the stream" not in str(e.value)


@pytest.mark.parametrize("sum_up", [lambda x, a, b, c: b + a + x, lambda x, a, b, c: x + (a + b + c)])
def test_parallel_branches_that_are_added_up_first_are_one(sum_up):
    model = nn.Sequential(nn.Linear(16, 16), *[Parallel(sum_up) for _ in range(3)])
    assert len(convert(model, levada.HyperConnection, batch=X).levada_conversion.sites) == 3


def test_an_addition_alone_has_no_streams_and_is_said():
    model = nn.Sequential(nn.Linear(16, 16), Residual(), Residual(), nn.Linear(16, 16), Residual()).eval()
    net = convert(model, HC, batch=X)
    assert net.levada_conversion.left_out == (
        "The addition of 4 stays: it is the only one of its stream, and streams need two.",
    )
    require_alive(net, X, 2)
    other = convert(model, levada.ReZero, batch=X)
    assert other.levada_conversion.left_out == ()
    with pytest.raises(UsageError, match=r"The addition of 1 stays: it is the only one"):
        convert(nn.Sequential(nn.Linear(16, 16), Residual()), HC, batch=X)


def test_a_residual_that_is_cast_beside_its_branch():
    net = convert(Loop(lambda m, x, b: x.to(torch.float32) + b(x)).eval(), HC, batch=X)
    require_alive(net, X, 4)


def test_a_stack_and_other_blocks_are_converted_together():
    stack = levada.Stack([Branch() for _ in range(2)], levada.Residual, dim=16)
    model = nn.Sequential(nn.Linear(16, 16), stack, Residual(), Residual()).eval()
    net = convert(model, HC, batch=X)
    assert net.levada_conversion.sites == ("2", "3", "1.layers.0", "1.layers.1")
    require_alive(net, X, 4)


@dataclasses.dataclass
class Result:
    y: Tensor
    hidden: list


class Returning(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.encoder, self.embed, self.form = Encoder(), nn.Linear(16, 16), form

    def forward(self, x):
        hidden = [self.embed(x)]
        for branch in self.encoder.branches:
            hidden.append(hidden[-1] + branch(hidden[-1]))
        return self.form(hidden[-1], hidden)


@pytest.mark.parametrize(
    "form",
    [lambda y, h: Result(y, h), lambda y, h: {0: y, "hidden": h}, lambda y, h: (y, {1: h})],
    ids=["dataclass", "integer keys", "nested"],
)
def test_what_is_returned_holds_tensors_however_it_is_held(form):
    model = Returning(form).eval()
    net = convert(model, HC, batch=X)
    assert net.levada_conversion.difference <= 1e-12
    found, expected = [], []
    for run, kept in ((net, found), (model, expected)):
        result = run(X)
        kept += [result.y, *result.hidden] if isinstance(result, Result) else _leaves(result)
    assert all(type(t) is Tensor for t in found)
    torch.testing.assert_close(found, expected)


def _leaves(value):
    return torch.utils._pytree.tree_leaves(value)


def test_complex_outputs_are_compared():
    class Turned(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return x.sum(), torch.complex(x, x) * self.factor

    assert verify_preserved(Turned(1.0), Turned(2.0), X) == pytest.approx(1.0)


def test_evaluation_without_gradients_of_an_input_that_needs_one():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(Branch() for _ in range(3))

        def forward(self, x):
            for branch in self.branches:
                x = x + branch(x)
            return x

    for connection in (HC, levada.DepthWeightedAverage, levada.MultiwayDynamicDense):
        net, x = convert(Bare(), connection, batch=X), X.clone().requires_grad_()
        with torch.no_grad():
            assert net(x).shape == X.shape


class Merging(nn.Linear):
    """As adapters do: calling `eval` changes the weights."""

    def train(self, mode=True):
        if not mode:
            with torch.no_grad():
                self.weight.mul_(2.0)
        return super().train(mode)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x


def test_conversion_leaves_no_trace_in_modes_buffers_and_random_numbers():
    model = nn.Sequential(Merging(16, 16), Counting(), Residual(), Residual()).train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(UsageError, match="Highway"):
        convert(model, levada.Highway, batch=X)
    with pytest.raises(UsageError, match="outputs must stay"):
        convert(model, levada.GatedResidual, batch=X)
    assert torch.equal(torch.get_rng_state(), state)
    made = []
    for verify in (True, False):
        torch.manual_seed(0)
        net = convert(model, levada.MultiwayDynamicDense, batch=X, verify=verify)
        assert all(module.training for module in net.modules())
        made.append(net.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    for values in (model.state_dict(), made[0]):
        assert all(torch.equal(values[name], value) for name, value in before.items())


def test_in_place_conversion_that_fails_late_is_undone(monkeypatch):
    model = nn.Sequential(nn.Linear(16, 16), Residual(), Residual())
    before = {
        name: (dict(m.__dict__), list(m._forward_hooks), list(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    import sys

    module = sys.modules["levada.conversion.convert"]

    def fail(*args):
        raise UsageError("convert: planted.")

    monkeypatch.setattr(module, "_require_written", fail)
    with pytest.raises(UsageError, match="planted"):
        convert(model, MHC, batch=X, copy=False)
    after = {
        name: (dict(m.__dict__), list(m._forward_hooks), list(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    assert after.keys() == before.keys()
    for name in before:
        assert after[name][0].keys() == before[name][0].keys(), name
        assert after[name][1:] == before[name][1:], name


def test_a_connection_that_is_replaced_is_the_one_that_runs():
    net = convert(nn.Sequential(nn.Linear(16, 16), Residual(), Residual()).eval(), HC, batch=X)
    before = net(X)
    other = HC(16, layer=0, depth=2, head="mean")
    with torch.no_grad():
        other.static_write.mul_(3.0)
    net[1].connections[0] = other
    assert not torch.equal(net(X), before)
    restored = copy.deepcopy(net)
    assert torch.equal(restored(X), net(X))
    with torch.no_grad():
        restored[1].connections[0].static_write.zero_()
    assert not torch.equal(restored(X), net(X)), "a copy has connections of its own"


def test_blocks_in_another_order_are_refused():
    net = convert(nn.Sequential(nn.Linear(16, 16), *[Residual() for _ in range(3)]).eval(), HC, batch=X)
    dropped = nn.Sequential(net[0], net[1], net[3])
    with pytest.raises(UsageError, match="must run in the order in which they were converted, and 2 was left out"):
        dropped(X)


def test_what_a_layer_reads_cannot_be_assigned_to():
    def assigning(model, x, branch):
        x[:, 0] = 0.0
        return x + branch(x)

    with pytest.raises(UsageError, match="cannot be assigned to"):
        convert(Loop(assigning), HC, batch=X)


def test_a_branch_of_higher_precision_makes_the_stream_so_as_in_the_model():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(Branch() for _ in range(4))

        def forward(self, x):
            for branch in self.branches:
                x = x + branch(x.float())
            return x

    model, x = Wide().eval(), X.bfloat16()
    net = convert(model, HC, batch=X, verify=False)
    assert net(x).dtype == model(x).dtype == torch.float32
    torch.testing.assert_close(net(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_model_that_runs_in_float32_alone_is_measured_in_it():
    class Single(Residual):
        def forward(self, x):
            if x.dtype == torch.float64:
                raise RuntimeError("expected Float but found Double")
            return super().forward(x)

    net = convert(nn.Sequential(nn.Linear(16, 16), Single(), Single()).eval(), HC, batch=X)
    assert net.levada_conversion.precision == torch.float32
    assert net.levada_conversion.difference < 1e-6
    require_alive(net, X, 2)


def test_options_may_be_bound_beforehand():
    import functools

    made = functools.partial(HC, streams=3)
    net = convert(nn.Sequential(nn.Linear(16, 16), Residual(), Residual()).eval(), made, batch=X)
    assert net.levada_conversion.difference <= 1e-12
    assert net[1].connections[0].streams == 3


@pytest.mark.parametrize("name", ["truediv", "floordiv", "pow", "mod", "matmul", "lt", "ge", "ne"])
def test_a_stream_computes_as_what_is_read(name):
    seen = []

    def step(model, x, branch):
        other = torch.full((16, 16) if name == "matmul" else (16,), 2.0, dtype=x.dtype)
        seen.append((getattr(operator, name)(x, other), getattr(operator, name)(x * 1.0, other)))
        return x + branch(x)

    convert(Loop(step), HC, batch=X)
    assert all(torch.equal(one, two) for one, two in seen)
