"""The connection protocol, and stacks: equal to the loop by hand, cheap, deep, checkpointed, compiled, and strict."""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import levada
from levada._errors import UsageError
from levada.blocks import FullyConnected
from levada.connection import Connection, Layer, SingleStream
from levada.connections import Plain, PostNorm, Residual, ReZero
from levada.stack import Stack

# Warnings are errors here; Dynamo reads `.grad` of every tensor that enters a graph and hides what torch says to that.
compiles = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")


def branch(dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh())


class Shift(nn.Module):
    """Takes more than the stream."""

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        return torch.tanh(x + by)


class Add(SingleStream):
    """The least that a connection can be."""

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        return state + out


class Pair(Connection):
    """Two streams in a dictionary, which take turns: a state that is not a tensor."""

    def begin(self, x: Tensor) -> dict[str, Tensor]:
        return {"old": x, "new": x}

    def read(self, state: dict[str, Tensor]) -> Tensor:
        return state["new"]

    def write(self, state: dict[str, Tensor], out: Tensor) -> dict[str, Tensor]:
        return {"old": state["new"], "new": state["old"] + out}

    def end(self, state: dict[str, Tensor]) -> Tensor:
        return state["old"] + state["new"]

    def output(self, dim: int) -> nn.Module:
        return nn.LayerNorm(dim)


class Appending(Pair):
    """Changes its state in place."""

    def write(self, state: dict[str, Tensor], out: Tensor) -> dict[str, Tensor]:
        state["new"] = state["new"] + out
        return state


class Adding(SingleStream):
    """Changes its tensor in place."""

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        return state.add_(out)


class Opaque(SingleStream):
    """Hides its tensor."""

    def begin(self, x: Tensor) -> object:
        return type("Box", (), {"x": x})()

    def read(self, state: object) -> Tensor:
        return state.x  # type: ignore[attr-defined, no-any-return]

    def write(self, state: object, out: Tensor) -> object:
        return type("Box", (), {"x": out})()


class PerLayer(SingleStream):
    """Reads a number that differs by layer: what a compiled layer must not do."""

    def write(self, state: Tensor, out: Tensor) -> Tensor:
        return state + out / (1 + self.layer)


def gradients(stack: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    y = stack(x)
    return y, list(torch.autograd.grad(y.square().sum(), list(stack.parameters())))


# --- protocol -----------------------------------------------------------------------------------------------------


def test_stack_is_the_loop_by_hand() -> None:
    branches = [branch(4) for _ in range(5)]
    stack, x = Stack(branches, Residual, dim=4), torch.randn(3, 4)
    expected = x
    for b in branches:
        expected = expected + b(expected)
    assert torch.equal(stack(x), expected)
    state = x
    for layer in stack:
        state = layer(state)
    assert torch.equal(state, expected)
    assert (len(stack), stack.depth, stack.dim, stack.dim_out, stack[-1].connection.layer) == (5, 5, 4, 4, 4)


def test_begin_read_write_end_output_are_called_in_order() -> None:
    stack = Stack(branch, Pair, dim=4, depth=3)
    x = torch.randn(2, 4)
    old, new = x, x
    for layer in stack:
        old, new = new, old + layer.branch(new)
    torch.testing.assert_close(stack(x), nn.LayerNorm(4)(old + new))
    assert isinstance(stack.output, nn.LayerNorm)


def test_arguments_go_to_every_branch() -> None:
    x, by = torch.randn(2, 4), torch.randn(4)
    expected = x
    for _ in range(3):
        expected = expected + torch.tanh(expected + by)
    stack = Stack([Shift() for _ in range(3)], Residual, dim=4)
    torch.testing.assert_close(stack(x, by), expected)
    torch.testing.assert_close(Stack([Shift() for _ in range(3)], Residual, dim=4, checkpoint=2)(x, by), expected)


def test_one_module_may_serve_all_layers() -> None:
    shared = nn.Linear(4, 4)
    assert len(list(Stack([shared] * 6, Residual, dim=4).parameters())) == 2


def test_options_reach_the_connection_and_partials_work() -> None:
    norm = functools.partial(nn.LayerNorm, eps=0.5)
    for connection, options in ((PostNorm, {"norm": norm}), (functools.partial(PostNorm, norm=norm), {})):
        stack = Stack(branch, connection, dim=4, depth=2, **options)
        assert [layer.connection.norm.eps for layer in stack] == [0.5, 0.5]  # type: ignore[union-attr]


# --- errors -------------------------------------------------------------------------------------------------------


class Needs(SingleStream):
    def __init__(self, dim: int, *, layer: int, depth: int, streams: int) -> None:
        super().__init__(dim, layer=layer, depth=depth)

    write = Residual.write


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stack([], Residual, dim=4), "branches must hold a module or more.*got 0 branches"),
        (lambda: Stack(branch, Residual, dim=4), "depth must be at least 1, got 0. Where branches is a function"),
        (lambda: Stack(branch, Residual, dim=4, depth=-1), "depth must be at least 1, got -1"),
        (lambda: Stack([branch(4)], Residual, dim=4, depth=2), "got 1 branches and depth=2"),
        (lambda: Stack([branch(4)], Residual, dim=-4), "Residual: dim must be at least 1, got -4"),
        (lambda: Stack(nn.Linear(4, 4), Residual, dim=4), "must be modules, or a function that makes one"),
        (lambda: Stack([torch.tanh], Residual, dim=4), "must be an nn.Module, got builtin.* at layer 0"),
        (lambda: Stack(lambda dim: dim, Residual, dim=4, depth=2), "must be an nn.Module, got int at layer 0"),
        (lambda: Stack([branch(4)], ReZero, dim=4, streams=4), "ReZero takes no option 'streams'; it takes: init"),
        (lambda: Stack([branch(4)], ReZero, dim=4, depht=1), "takes no option 'depht'.*Did you mean 'depth'"),
        (lambda: levada.convert(branch(4), ReZero, bach=1), "takes no option 'bach'.*Did you mean 'batch'"),
        (
            lambda: levada.PostNorm(4, norm=nn.LayerNorm(4)),
            "norm must make a module, such as nn.LayerNorm, got an inst",
        ),
        (lambda: FullyConnected(4, norm=nn.LayerNorm(4)), "norm must make a module, such as nn.LayerNorm, got an inst"),
        (lambda: FullyConnected(4, activation=nn.ReLU()), "activation must make a module, such as nn.ReLU, got an ins"),
        (lambda: Stack([branch(4)], Adding, dim=4, layer=1), "Adding takes no option 'layer'; it takes: none"),
        (lambda: Stack([branch(4)], Needs, dim=4), r"Needs needs the option 'streams'. Add streams="),
        (lambda: Stack([branch(4)], Residual(4), dim=4), "connection must be a class.*got an instance of Residual"),
        (lambda: Stack([branch(4)], lambda dim, **_: nn.ReLU(), dim=4), "must make a Connection, got ReLU"),
        (lambda: Stack([branch(4)], Residual, dim=4, checkpoint=2), r"checkpoint must be in \[0, depth\] with depth 1"),
        (lambda: Stack([branch(4)], Residual, dim=4, compile={"fullgraph": False}), "needs fullgraph=True"),
        (lambda: Plain(4, layer=3, depth=3), r"layer must be in \[0, depth\) with depth 3, got 3"),
        (lambda: Stack([branch(4)], nn.Linear, dim=4), "must be a class of Connection, such as .*, got Linear"),
        (lambda: Stack(branch, Residual, dim=4, depth=2.5), "depth must be an integer, got 2.5"),
        (lambda: Residual("4"), "dim must be an integer, got '4'"),
        (lambda: Residual(True), "dim must be an integer, got True"),
        (lambda: Residual(4, layer=0.5, depth=2), "layer must be an integer, got 0.5"),
        (lambda: levada.ManifoldHyperConnection(4, streams=2.5), "streams must be an integer, got 2.5"),
        (lambda: levada.ManifoldHyperConnection(4, streams="4"), "streams must be an integer, got '4'"),
        (lambda: levada.SparseHyperConnection(4, streams=4.0), "streams must be an integer, got 4.0"),
        (lambda: levada.SparseHyperConnection(4, fixed=1.0), "fixed must be an integer, got 1.0"),
        (lambda: levada.AttentionResidual(4, block_size=1.5), "block_size must be an integer, got 1.5"),
        (lambda: levada.AttentionResidual(4, axis="1"), "axis must be an integer, got '1'"),
        (lambda: levada.Momentum(4, gamma="0.9"), "gamma must be a number, got '0.9'"),
        (lambda: levada.MultiwayDynamicDense(4, epsilon=None), "epsilon must be a number, got None"),
        (lambda: levada.Probe(3), "Probe: model must be an nn.Module, got int"),
        (lambda: levada.initialise.he(3), "he: model must be an nn.Module, got int"),
        (lambda: levada.parameter_groups(nn.Linear(2, 2).parameters()), "model must be an nn.Module, got generator"),
        (lambda: levada.convert(branch(4), nn.Linear), "must be a class of Connection, such as .*, got Linear"),
        (lambda: SingleStream.__init__(Plain(4), 4, dim_in=0), "dim_in must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(make, message) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("width", [1, 3])
def test_a_branch_that_does_not_fit_is_named_even_where_it_would_broadcast(width) -> None:
    stack = Stack([branch(4), nn.Linear(4, width)], Residual, dim=4)
    with pytest.raises(UsageError, match=rf"\(2, 4\), got \(2, {width}\)(.|\n)*In layer 1 of a stack: Residual around"):
        stack(torch.randn(2, 4))
    with pytest.raises(UsageError, match="must return the shape"):
        stack[1](torch.randn(2, 4))


def test_an_error_inside_a_branch_keeps_its_type_and_says_its_layer() -> None:
    stack = Stack([branch(4), branch(5), branch(4)], Residual, dim=4, checkpoint=1)
    with pytest.raises(RuntimeError, match=r"mat1 and mat2(.|\n)*In layer 1 of a stack: Residual around Sequential"):
        stack(torch.randn(2, 4))


# --- what others hang on a layer must run, though a stack takes a short cut where nothing hangs ----------------------


@pytest.mark.parametrize("where", ["layer", "branch"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_run(where, register) -> None:
    stack, seen = Stack(branch, Add, dim=4, depth=3), []
    module = stack[1] if where == "layer" else stack[1].branch
    handle = getattr(module, register)(lambda *given: seen.append(given[0]))
    stack(torch.randn(2, 4)).sum().backward()
    assert seen == [module]
    handle.remove()
    stack(torch.randn(2, 4)).sum().backward()
    assert seen == [module]


def test_global_hooks_and_replaced_forwards_run() -> None:
    stack, seen = Stack(branch, Add, dim=4, depth=2), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    stack(torch.randn(2, 4))
    handle.remove()
    assert (seen.count("Layer"), seen.count("Sequential")) == (2, 2)
    stack[0].forward = lambda state: state + 1.0  # type: ignore[method-assign]
    stack[1].branch.forward = lambda x: x * 0 + 2.0
    assert torch.equal(stack(torch.zeros(1, 4)), torch.full((1, 4), 3.0))


def test_a_layer_or_a_call_that_was_replaced_is_called(monkeypatch) -> None:
    class Doubling(Layer):
        def forward(self, state: Tensor, *args: object) -> Tensor:
            return 2 * super().forward(state, *args)

    stack = Stack([nn.Identity(), nn.Identity()], Plain, dim=4)
    stack.layers[0] = Doubling(stack[0].connection, stack[0].branch)
    assert torch.equal(stack(torch.ones(1, 4)), torch.full((1, 4), 2.0))
    called, original = [], nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *a: called.append(type(self)) or original(self, *a))
    stack(torch.ones(1, 4))
    assert called == [Stack, Doubling, nn.Identity, Layer, nn.Identity, nn.Identity]


# --- checkpoint ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", [Residual, Pair])
@pytest.mark.parametrize("checkpoint", [1, 3, 7, True])
def test_checkpointed_gradients_are_the_plain_ones(connection, checkpoint) -> None:
    x = torch.randn(3, 4)  # requires no gradient, as a first layer's input
    plain = Stack(lambda dim: nn.Sequential(branch(dim), nn.Dropout(0.5)), connection, dim=4, depth=7)
    again = Stack([layer.branch for layer in plain], connection, dim=4, checkpoint=checkpoint)
    again.output.load_state_dict(plain.output.state_dict())
    results = []
    for stack in (plain, again):
        torch.manual_seed(1)  # dropout: the second pass must draw what the first drew
        results.append(gradients(stack, x))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert again.segments == (3 if checkpoint is True else checkpoint)


def test_a_checkpointed_layer_runs_twice_and_once_without_gradients() -> None:
    calls = []
    stack = Stack(branch, Residual, dim=4, depth=6, checkpoint=2)
    for layer in stack:
        layer.branch.register_forward_hook(lambda *_, i=layer.connection.layer: calls.append(i))
    stack(torch.randn(2, 4)).sum().backward()
    # PyTorch ends a segment's second pass, with an exception, once all that backward needs was computed again: inside
    # of the last branch, before its hook.
    assert calls == [0, 1, 2, 3, 4, 5, 3, 4, 0, 1]
    calls.clear()
    with torch.no_grad():
        stack(torch.randn(2, 4))
    assert calls == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("connection", "message"),
    [(Appending, "Appending changes it in place"), (Adding, "Adding changes it in place"), (Opaque, "holds a Box")],
)
def test_a_state_that_does_not_survive_checkpointing_is_named(connection, message) -> None:
    with pytest.raises(UsageError, match=message):
        Stack(branch, connection, dim=4, depth=4, checkpoint=2)(torch.randn(2, 4))


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    return importlib.import_module("benchmarks.measure")


def test_memory_grows_as_the_square_root_of_the_depth(measure) -> None:
    def peak_bytes(depth: int, checkpoint: bool) -> int:
        stack, x = Stack(branch, Residual, dim=4, depth=depth, checkpoint=checkpoint), torch.randn(256, 4)
        for p in stack.parameters():
            p.grad = torch.zeros_like(p)  # gradients are not activations
        return measure.peak_bytes(lambda: stack(x).sum().backward())

    plain = {depth: peak_bytes(depth, False) for depth in (25, 100)}
    again = {depth: peak_bytes(depth, True) for depth in (25, 100)}
    assert 3.6 < plain[100] / plain[25] < 4.1  # proportional to the depth
    assert 1.7 < again[100] / again[25] < 2.2  # and to its square root
    assert again[100] < 0.25 * plain[100]


# --- compile ------------------------------------------------------------------------------------------------------


class Counting:
    """A backend that runs the graph as it is and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        self.graphs += 1
        return graph.forward


@compiles
@pytest.mark.parametrize("connection", [Residual, ReZero, PostNorm])
def test_compiled_graphs_do_not_grow_with_depth(connection) -> None:
    graphs = {}
    for depth in (2, 64):
        torch.manual_seed(depth)
        plain, counting = Stack(branch, connection, dim=4, depth=depth), Counting()
        stack = Stack([b.branch for b in plain], connection, dim=4, compile={"backend": counting})
        stack.load_state_dict(plain.state_dict())
        x = torch.randn(3, 4)
        torch.testing.assert_close(stack(x), plain(x))
        torch.testing.assert_close(gradients(stack, x)[1], gradients(plain, x)[1])
        graphs[depth] = counting.graphs
    assert graphs == {2: 2, 64: 2}  # one for an input without gradient, one for all the others


@compiles
def test_more_graphs_than_the_limit_raise_and_never_run_uncompiled() -> None:
    stack = Stack(branch, PerLayer, dim=4, depth=20, compile={"backend": "eager"})
    with pytest.raises(UsageError, match=r"differ in more than 8 ways"):
        stack(torch.randn(2, 4))


@compiles
def test_stacks_of_other_shapes_do_not_use_up_the_limit() -> None:
    for dim in range(2, 8):
        counting = Counting()
        stack = Stack(branch, Residual, dim=dim, depth=3, compile={"backend": counting})
        stack(torch.randn(2, dim))
        assert counting.graphs == 2


@compiles
def test_hooks_run_on_compiled_layers_and_copies_stay_compiled() -> None:
    counting, seen = Counting(), []
    stack, x = (
        Stack(branch, Residual, dim=4, depth=3, compile={"backend": counting}, checkpoint=True),
        torch.randn(2, 4),
    )
    y, plain = gradients(stack, x)
    stack[1].register_forward_hook(lambda *_: seen.append("hook"))
    torch.testing.assert_close(gradients(stack, x), (y, plain))
    assert seen == ["hook", "hook"]  # forward, and again in the backward pass
    before = counting.graphs
    other = copy.deepcopy(stack)
    assert other[0].compiled is other[2].compiled
    assert other[0].compiled is not None
    torch.testing.assert_close(other(x), y)
    assert before > 0


@compiles
def test_layers_and_branches_that_the_user_compiled_run_compiled() -> None:
    for module in ("layer", "branch"):
        stack, counting = Stack([Shift(), Shift()], Add, dim=4), Counting()
        (stack[1] if module == "layer" else stack[1].branch).compile(backend=counting)
        stack(torch.randn(2, 4), torch.randn(4))
        assert counting.graphs == 1


@compiles
def test_a_compiled_stack_survives_pickling() -> None:
    stack, x = Stack(branch, Residual, dim=4, depth=3, compile={"backend": "eager"}), torch.randn(2, 4)
    y = stack(x)
    loaded = pickle.loads(pickle.dumps(stack))
    assert torch.equal(loaded(x), y)
    assert loaded[0].compiled is loaded[2].compiled is not None


@compiles
@pytest.mark.parametrize("options", [{}, {"checkpoint": 2}, {"compile": {"backend": "eager"}}])
def test_a_whole_stack_can_be_compiled_and_exported(options) -> None:
    stack, x = Stack(branch, Pair, dim=4, depth=4, **options), torch.randn(2, 4)
    y, plain = gradients(stack, x)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    z, others = gradients(compiled, x)
    torch.testing.assert_close((z, others), (y, plain))
    torch.testing.assert_close(torch.export.export(stack, (x,)).module()(x), y)


# --- depth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "checkpoint"), [(10_000, False), (1_000, True)])
def test_a_very_deep_stack_builds_trains_and_copies(depth, checkpoint) -> None:
    torch.manual_seed(0)
    stack = Stack(lambda dim: nn.Linear(dim, dim), ReZero, dim=8, depth=depth, checkpoint=checkpoint)
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    parameters, losses = list(stack.parameters()), []
    for _ in range(3):
        loss = (stack(x) - y).square().mean()
        losses.append(loss.item())
        with torch.no_grad():
            torch._foreach_add_(parameters, torch.autograd.grad(loss, parameters), alpha=-0.3 / depth**0.5)
    assert losses[2] < losses[1] < losses[0]
    with torch.no_grad():
        y = stack(x)
        assert torch.equal(copy.deepcopy(stack)(x), y)
        saved = {name: value.clone() for name, value in stack.state_dict().items()}
        for p in parameters:
            p.zero_()
        if depth <= 1_000:  # PyTorch filters all names anew for each layer: quadratic, a minute for 10,000 layers
            stack.load_state_dict(saved)
            assert torch.equal(stack(x), y)
    assert len(saved) == 3 * depth


def test_deep_stacks_print_as_one_layer() -> None:
    text = repr(Stack(branch, Residual, dim=8, depth=1_000, checkpoint=True))
    assert re.search(r"dim=8, depth=1000, checkpoint=32", text)
    assert "(0-999): 1000 x Layer(" in text
    assert text.count("\n") < 15


# --- the harness that measures what stacks cost ----------------------------------------------------------------------


def test_ratios_are_of_programs_that_agree(measure) -> None:
    x = torch.randn(64, 64)
    slow, fast = (lambda: [sum(x @ x for _ in range(20)) / 20]), (lambda: [x @ x])
    found = measure.compare_times(slow, fast, repetitions=7)
    assert found["ratio"]["q1"] <= found["ratio"]["median"] <= found["ratio"]["q3"]
    assert found["ratio"]["median"] < 0.5
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        measure.compare_times(slow, lambda: [x @ x + 1], repetitions=7)
    with pytest.raises(AssertionError, match="nothing to compare"):
        measure.compare_times(list, list, repetitions=7)
    with pytest.raises(ValueError, match="at least 7, got 3"):
        measure.compare_times(slow, fast, repetitions=3)


def test_peak_bytes_counts_what_is_alive_at_once(measure) -> None:
    before = torch.zeros(5000)  # made outside: not counted, also where it is changed in place or viewed

    def run() -> Tensor:
        before.zero_().view(50, 100).add_(1)
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1  # two alive: the old one and the new one
        return torch.stack([x, x])  # 4000 bytes for x, 8000 for the result

    assert measure.peak_bytes(run) == 12_000
