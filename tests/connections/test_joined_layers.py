"""Layers of which the next one writes as it reads: the same network, and nobody who stands between is passed by."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import levada
from levada.connections import hyper, single_pass
from levada.connections import streams as module
from levada.connections.streams import MultiStream, SteppedStreams
from levada.ops._define import plain_operations

CASES = {
    "mHC": (levada.ManifoldHyperConnection, {}),
    "released": (levada.ManifoldHyperConnection, {"form": "deepseek_v4"}),
    "identity": (levada.IdentityHyperConnection, {"head": "mean"}),
    "images": (levada.ManifoldHyperConnection, {"axis": 1}),
    "HC": (levada.HyperConnection, {}),
    "static HC": (levada.HyperConnection, {"dynamic": False}),
    "single pass": (levada.SinglePassManifoldHyperConnection, {}),
    "released single pass": (levada.SinglePassManifoldHyperConnection, {"form": "deepseek_v41"}),
    "single pass of images": (levada.SinglePassManifoldHyperConnection, {"axis": 1}),
    "HC of images": (levada.HyperConnection, {"axis": 1, "norm": "rms"}),
}


def build(case="mHC", depth=4, branch=nn.Tanh, **options):
    torch.manual_seed(0)
    connection, more = CASES[case]
    stack = levada.Stack([branch() for _ in range(depth)], connection, dim=6, **more, **options)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return stack


def batch(case="mHC"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, 6, 5) if "images" in case else (5, 6), generator=generator).requires_grad_()


def results(stack, x, **options):
    y = stack(x, **options)
    y = y[0] if isinstance(y, tuple) else y
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *stack.parameters()], allow_unused=True)]


@pytest.fixture
def joined(monkeypatch):
    """Count how often streams are written and read in one operation."""
    pytest.importorskip("numba")
    found = []
    for where, name in (
        (module, "write_and_read"),
        (hyper, "write_and_read_hyper"),
        (hyper, "write_and_read_static"),
        (single_pass, "write_and_read_handed"),
    ):
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *given, real=real: found.append(1) or real(*given))
    return found


@pytest.fixture
def apart(monkeypatch):
    """Return the results of a stack whose layers each write for themselves."""

    def run(stack, x):
        with monkeypatch.context() as patch:
            patch.setattr(SteppedStreams, "defers_to", lambda self, after: False)
            return results(stack, x)

    return run


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_layers_apart(case, joined, apart):
    stack, x = build(case), batch(case)
    expected = apart(stack, x)
    assert not joined
    torch.testing.assert_close(results(stack, x), expected)
    assert len(joined) == 3


def test_segments_are_joined_inside_and_written_at_their_ends(joined, apart):
    stack, x = build(), batch()
    expected = apart(stack, x)
    stack.arrange(checkpoint=2)
    torch.testing.assert_close(results(stack, x), expected)
    assert len(joined) == 4  # once in each half, there and again


class Pair(nn.Module):
    def forward(self, x):
        return x.tanh(), x.sum()


def test_what_branches_return_beside_comes_out(joined, apart):
    stack, x = build(branch=Pair), batch()
    expected = apart(stack, x)
    torch.testing.assert_close(results(stack, x), expected)
    assert len(joined) == 3
    assert [len(extra) for extra in stack(x)[1]] == [1] * 4


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_sees_the_streams(kind, joined, apart):
    stack, x = build(), batch()
    expected = apart(stack, x)
    seen = []
    getattr(stack[1], kind)(lambda layer, given, *out: seen.append((*given, *out)[-1]))
    torch.testing.assert_close(results(stack, x), expected)
    assert seen[0].shape == (5, 4, 6)
    assert len(joined) == 1  # between the two layers behind it


def test_who_looks_at_coefficients_or_operations_gets_them(joined):
    stack, x = build(), batch()
    with plain_operations():
        stack(x)
    assert not joined
    real = stack[2].connection.coefficients
    seen = []
    stack[2].connection.coefficients = lambda state: seen.append(state.shape) or real(state)
    stack(x)
    assert seen == [(5, 4, 6)]
    assert len(joined) == 1


def test_a_step_of_its_own_is_gone_through(joined):
    """As sharding puts one around a connection, which gathers its parameters; or a subclass has one."""
    stack, x = build(), batch()
    connection = stack[1].connection
    seen = []
    connection.advance = lambda *given: seen.append(1) or type(connection).advance(connection, *given)
    stack(x)
    assert seen
    assert len(joined) == 1

    class Counted(MultiStream):
        coefficients = levada.ManifoldHyperConnection.coefficients

        def advance(self, state, branch, *args, **kwargs):
            return super().advance(state, branch, *args, **kwargs)

    assert not Counted(6, streams=4).defers_to(Counted(6, streams=4))


def test_others_write_at_once():
    hyper, mhc = levada.HyperConnection(6), levada.ManifoldHyperConnection(6)
    assert hyper.defers_to(levada.HyperConnection(6))
    assert hyper.defers_to(levada.HyperConnection(6, dynamic=False))
    assert not hyper.defers_to(mhc)
    assert mhc.defers_to(levada.ManifoldHyperConnection(6))
    assert not mhc.defers_to(levada.IdentityHyperConnection(6))
    assert not mhc.defers_to(levada.ManifoldHyperConnection(6, streams=2))
    assert not mhc.defers_to(levada.ManifoldHyperConnection(6, manifold="permutations"))
    assert not levada.Residual(6).defers_to(levada.Residual(6))
    with pytest.raises(NotImplementedError, match="Residual writes at once"):
        levada.Residual(6).defer(torch.zeros(1, 6), nn.Identity())


@pytest.mark.parametrize("axes", [(1, -1), (-1, 1), (1, -1, 1)])
def test_each_layer_writes_along_its_own_axis(axes, joined, apart):
    torch.manual_seed(0)
    branches = [nn.Linear(6, 6) for _ in axes]

    def connect(dim, layer, depth):
        return levada.ManifoldHyperConnection(dim, axis=axes[layer], layer=layer, depth=depth)

    stack = levada.Stack(branches, connection=connect, dim=6)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 6, 6, requires_grad=True)
    torch.testing.assert_close(results(stack, x), apart(stack, x))
    assert len(joined) == len(axes) - 1


def test_narrow_branches_of_wide_streams(apart):
    """Under autocast a branch returns 16 bits, and the streams have 32."""
    stack, x = build(branch=lambda: nn.Linear(6, 6)), batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = apart(stack, x)
        got = results(stack, x)
    torch.testing.assert_close(got, expected)


def test_transforms_and_second_derivatives(apart):
    stack, x = build().double(), batch().detach().double()

    def loss(x):
        return stack(x).square().sum()

    whole = torch.func.hessian(loss)(x)
    first = torch.autograd.grad(loss(y := x.clone().requires_grad_()), y, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), y)[0]
    torch.testing.assert_close(second, 2 * torch.einsum("abcd,cd->ab", whole, first.detach()))


def test_the_backward_pass_keeps_no_more(joined, monkeypatch):
    stack, x = build(depth=6), batch()

    def kept():
        sizes = {}

        def pack(y):
            sizes[y.untyped_storage().data_ptr()] = y.untyped_storage().nbytes()
            return y

        with saved_tensors_hooks(pack, lambda y: y):
            alive = stack(x)  # noqa: F841
        return sum(sizes.values())

    together = kept()
    assert joined
    monkeypatch.setattr(SteppedStreams, "defers_to", lambda self, after: False)
    assert together <= kept()


def test_a_copy_computes_the_same(joined):
    stack, x = build(), batch()
    assert torch.equal(copy.deepcopy(stack)(x), stack(x))
    assert joined


class Returns(nn.Module):
    """A branch of which each test says what it returns."""

    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def forward(self, x):
        return self.returned(x)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda x: x[..., :5], "must return the shape"),
        (lambda x: x.long(), "floating point"),
        (lambda x: x.to("meta"), "on cpu as the streams are"),
    ],
)
def test_an_error_names_the_layer_whose_branch_returned_it(returned, said, joined):
    stack, x = build(), batch()
    stack.layers[2].branch = Returns(returned)
    with pytest.raises(levada.connection.UsageError, match=said) as caught:
        stack(x)
    assert "In layer 2 of a stack: ManifoldHyperConnection around Returns" in caught.value.__notes__[0]
