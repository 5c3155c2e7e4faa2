"""Watching under `torch.compile`: the numbers of eager mode, and no more graphs than the taps need."""

import warnings

import pytest
import torch
from tests.watching.by_hand import NAMES, agree, by_hand, data, loss_of, make, sgd, train, watch
from tests.watching.compiled import Counted
from torch._dynamo.backends.debugging import aot_eager

import levada

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("how", "called", "recompute"),
    [
        ("wrapped", True, None),
        ("wrapped", False, "not"),
        ("in place", True, "not"),
        ("in place", False, None),
    ],
)
def test_a_model_that_was_compiled(how, called, recompute):
    plain, backend = make(recompute), Counted(aot_eager)
    model = plain
    if how == "wrapped":
        model = torch.compile(plain, backend=backend, fullgraph=True)
    else:
        plain.compile(backend=backend, fullgraph=True)
    optimizer = sgd(model)
    if called:
        train(model, optimizer, data(1))
        plain.load_state_dict(make().state_dict())
    before = backend.graphs
    with watch(model, optimizer, every=2) as watched:
        train(model, optimizer, data(7))
    agree(watched, by_hand(make(), data(7))[::2], rtol=1e-5)
    assert before == called
    assert backend.graphs == 2  # with taps and without
    train(model, optimizer, data(2))
    assert backend.graphs == 2
    assert [len(m._forward_hooks) for m in plain.modules()] == [0] * len(list(plain.modules()))


def test_a_model_that_the_loop_compiles_after():
    plain, backend = make(), Counted(aot_eager)
    optimizer = sgd(plain)
    with watch(plain, optimizer, every=2) as watched:
        model = torch.compile(plain, backend=backend, fullgraph=True)
        train(model, optimizer, data(7))
    agree(watched, by_hand(make(), data(7))[::2], rtol=1e-5)
    assert backend.graphs == 2
    train(model, optimizer, data(2))
    assert backend.graphs <= 3  # the compiler looks at the number of hooks where it met some


def test_a_whole_step_that_is_compiled():
    plain, backend = make(), Counted(aot_eager)
    optimizer = sgd(plain)
    loss = torch.compile(loss_of, backend=backend, fullgraph=True)
    with watch(plain, optimizer, every=2) as watched:
        train(plain, optimizer, data(5), loss)
    agree(watched, by_hand(make(), data(5))[::2], rtol=1e-5)
    assert backend.graphs == 2


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_blocks_that_were_compiled_one_by_one(how):
    model, backend = make(), Counted(aot_eager)
    for i, block in enumerate(model.blocks):
        if how == "wrapped":
            model.blocks[i] = torch.compile(block, backend=backend, fullgraph=True)
        else:
            block.compile(backend=backend, fullgraph=True)
    optimizer = sgd(model)
    train(model, optimizer, data(1))
    graphs = backend.graphs
    state = {name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()}
    reference = make()
    reference.load_state_dict(state)
    with watch(model, optimizer, every=2) as watched:
        train(model, optimizer, data(5))
    agree(watched, by_hand(reference, data(5))[::2], without=["zero_fraction"], rtol=1e-5)
    assert watched.sites[1].parameters == ("blocks.0.linear.weight", "blocks.0.linear.bias")
    assert backend.graphs == graphs  # the taps are around the blocks, not in them


def test_a_stack_that_compiles_its_layers():
    def stack(**options):
        torch.manual_seed(0)
        branches = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()) for _ in range(3)]
        return levada.Stack(branches, levada.Residual, dim=4, **options)

    def loop(model, optimizer):
        torch.manual_seed(1)
        train(model, optimizer, [torch.randn(5, 4) for _ in range(5)], lambda m, x: m(x).square().mean())

    alone, backend, found = Counted(aot_eager), Counted(aot_eager), []
    loop(model := stack(compile={"backend": alone}), sgd(model))
    for model in (stack(), stack(compile={"backend": backend})):
        with watch(model, optimizer := sgd(model), every=2) as watched:
            loop(model, optimizer)
        found.append(watched.trace())
    eager, compiled = found
    assert compiled.names() == ["layers.0", "layers.1", "layers.2"]
    for name in ("signal_rms", "gradient_rms", "update_ratio"):
        torch.testing.assert_close(compiled[name], eager[name], rtol=1e-5, atol=0)
    assert compiled["zero_fraction"].isnan().all()
    assert backend.graphs == alone.graphs


def test_what_was_compiled_before_and_is_hidden_is_said_once():
    plain = make()
    optimizer, loss = sgd(plain), torch.compile(loss_of, backend="aot_eager")
    train(plain, optimizer, data(1), loss)
    plain.load_state_dict(make().state_dict())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with watch(plain, optimizer) as watched:
            train(plain, optimizer, data(3), loss)
    told = [str(w.message) for w in told if str(w.message).startswith("watch:")]
    assert len(told) == 1
    assert "before the first compiled call" in told[0]
    assert [site.name for site in watched.sites] == NAMES
    expected = by_hand(make(), data(3))
    for sample, values in zip(watched.samples, expected, strict=True):
        assert sample.values["signal_rms"].isnan().all()
        assert sample.values["update_ratio"].tolist() == pytest.approx(values["update_ratio"], rel=1e-5)
        assert sample.scalars["loss"] == pytest.approx(values["loss"])


def test_evaluation_and_accumulation_under_compile():
    plain, backend = make(), Counted(aot_eager)
    model = torch.compile(plain, backend=backend, fullgraph=True)
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data(3, rows=6):
            optimizer.zero_grad()
            with torch.no_grad():
                model(100 * x)
            for part in x.chunk(2):
                (loss_of(model, part) / 2).backward()
            optimizer.step()
    agree(watched, by_hand(make(), data(3, rows=6), parts=2), rtol=1e-5)


def test_what_writes_into_a_blocks_output():
    class Writing(type(make())):
        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
                x += 1.0
            return self.head(x)

    torch.manual_seed(0)
    eager = Writing()
    torch.manual_seed(0)
    plain = Writing()
    found = []
    for model in (eager, torch.compile(plain, backend="aot_eager", fullgraph=True)):
        with watch(model, optimizer := sgd(model, 0.01)) as watched:
            train(model, optimizer, data(3))
        found.append(watched.trace())
    for name in ("signal_rms", "gradient_rms", "zero_fraction"):
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("how", ["whole", "by block", "eager"])
def test_one_model_that_is_watched_twice(how):
    plain = make()
    model = torch.compile(plain, backend="aot_eager", fullgraph=True) if how == "whole" else plain
    for block in plain.blocks if how == "by block" else ():
        block.compile(backend="aot_eager")
    optimizer = sgd(model)
    own = [module.__dict__.get("_compiled_call_impl") for module in plain.modules()]
    first, second = watch(model, optimizer, every=2), watch(model, optimizer)
    forward = model.__dict__.get("forward")
    train(model, optimizer, data(2))
    first.close()
    train(model, optimizer, data(3)[2:])
    second.close()
    expected, hidden = by_hand(make(), data(3)), ["zero_fraction"] if how == "by block" else []
    agree(second, expected, without=hidden, rtol=1e-5)
    if how != "whole":  # only one of them can have its taps in the graph
        agree(first, expected[:1], without=hidden, rtol=1e-5)
    assert [module.__dict__.get("_compiled_call_impl") for module in plain.modules()] == own
    if how == "whole":
        assert model.__dict__["forward"] is not forward
        assert not model.forward.__qualname__.startswith("_compile_again")


def test_inductor():
    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))

    found, plain = [], net()
    for model in (net(), torch.compile(plain)):
        with watch(model, optimizer := sgd(model)) as watched:
            train(model, optimizer, [torch.ones(3, 4)], lambda m, x: m(x).square().mean())
        found.append(watched.trace())
    for name in ("signal_rms", "gradient_rms", "zero_fraction", "update_ratio"):
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-5, atol=0, equal_nan=True)
