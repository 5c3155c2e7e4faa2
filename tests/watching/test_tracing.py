"""What PyTorch's tracers make of a watched model is what they make of it unwatched, and the watch goes on."""

import io
from importlib.util import find_spec

import pytest
import torch
import torch.onnx.utils
from tests.watching.by_hand import Net, agree, by_hand, data, loss_of, sgd, watch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import _disable_current_modes

from levada.watching.loop.tracing import symbolic

X = data(1)[0]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Scriptable(Net):
    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make():
    torch.manual_seed(0)
    return Scriptable()


def nodes(made):
    """Return what the nodes of a graph do, however they are named."""
    graph = made.inlined_graph if isinstance(made, torch.jit.ScriptModule) else made.graph
    if isinstance(graph, torch._C.Graph):
        return [node.kind() for node in graph.nodes()]
    return [str(node.target) for node in graph.nodes]


WAYS = {
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, (X,)),
    "export": lambda model: torch.export.export(model, (X,)).module(),
    "strict export": lambda model: torch.export.export(model, (X,), strict=True).module(),
    "make_fx": lambda model: make_fx(model)(X),
    "symbolic_trace": lambda model: torch.fx.symbolic_trace(torch.nn.Sequential(model)),
}


@pytest.mark.parametrize(("way", "sampled"), [*((way, True) for way in WAYS), ("script", False), ("trace", False)])
def test_what_is_made_of_a_watched_model_is_that_of_the_unwatched_one(way, sampled):
    expected, model = WAYS[way](make()), make()
    optimizer = sgd(model)
    with watch(model, optimizer, every=1 if sampled else 4) as watched:
        for step, x in enumerate(data(4)):
            if step == 1:
                made = WAYS[way](model)
                assert nodes(made) == nodes(expected)
                with torch.no_grad():
                    assert torch.equal(made(X), model(X))
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
    agree(watched, by_hand(make(), data(4))[:: 1 if sampled else 4])


def script_graph(model):
    """What the exporter that traces makes; it needs no other package."""
    graph, _, _ = torch.onnx.utils._model_to_graph(model, (X,))
    return [(node.kind(), node.scopeName()) for node in graph.nodes()]


def onnx_nodes(model, *, dynamo):
    import onnx

    written = io.BytesIO()
    torch.onnx.export(model, (X,), written, dynamo=dynamo, verbose=False)
    graph = onnx.load_from_string(written.getvalue()).graph
    return [(node.op_type, list(node.input), list(node.output)) for node in graph.node]


ONNX = {
    "script graph": (script_graph, hasattr(torch.onnx.utils, "_model_to_graph")),
    "script": (lambda model: onnx_nodes(model, dynamo=False), find_spec("onnx")),
    "dynamo": (lambda model: onnx_nodes(model, dynamo=True), find_spec("onnx") and find_spec("onnxscript")),
}


@pytest.mark.filterwarnings("ignore")  # exporters warn of themselves
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("way", ONNX)
def test_an_export_to_onnx_is_that_of_the_unwatched_model_and_no_pass(way, every):
    export, there = ONNX[way]
    if not there:
        pytest.skip("this exporter is not installed")
    expected, model = export(make()), make()
    optimizer = sgd(model)
    with watch(model, optimizer, every=every) as watched:
        assert watched.last_pass is None  # keep them from now on
        for step, x in enumerate(data(4)):
            if step == 2:
                before = watched.last_pass
                assert export(model) == expected
                assert watched.last_pass.number == before.number
                assert torch.equal(watched.last_pass.args[0], before.args[0])
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
    agree(watched, by_hand(make(), data(4))[::every])


def test_fake_tensors_are_not_measured():
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        for x in data():
            with FakeTensorMode(allow_non_fake_inputs=True):
                model(torch.empty(x.shape))
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
    agree(watched, by_hand(make(), data()))


def test_scripting_is_as_it_was_when_the_last_watch_is_closed():
    recursive, model = torch.jit._recursive, make()
    before, optimizer = recursive.create_script_module, sgd(model)
    first, second = watch(model, optimizer), watch(model, optimizer)
    hooks = list(model._forward_hooks.values())
    torch.jit.script(model)
    assert list(model._forward_hooks.values()) == hooks
    first.close()
    torch.jit.script(model)
    second.close()
    assert recursive.create_script_module is before


def test_scripting_that_someone_wrapped_again_is_left_to_them():
    recursive, model = torch.jit._recursive, make()
    before = recursive.create_script_module
    first = watch(model, sgd(model))
    ours = recursive.create_script_module

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    recursive.create_script_module = theirs
    try:
        first.close()
        assert recursive.create_script_module is theirs
        assert torch.equal(torch.jit.script(model)(X), model(X))
    finally:
        recursive.create_script_module = ours
    watch(model, sgd(model)).close()
    assert recursive.create_script_module is before


@pytest.mark.parametrize(
    "trace",
    [torch.fx.symbolic_trace, lambda model: torch.export.export(model, (X,), strict=False)],
    ids=["fx", "export"],
)
def test_what_tracers_run_is_symbolic_whatever_modes_are_on(trace):
    inside = []

    class Asking(torch.nn.Module):
        def forward(self, x):
            inside.append(symbolic())
            with _disable_current_modes():
                inside.append(symbolic())
            return x + 1

    model = Asking()
    model(X)
    assert inside == [False, False]
    trace(model)
    assert len(inside) > 2
    assert all(inside[2:])


def test_hooks_that_do_more_than_measure_are_compiled_with_the_model():
    def double(self, input: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return 2 * output

    expected, model = make(), make()
    for each in (expected, model):
        each.register_forward_hook(double)
    with watch(model, sgd(model)):
        made = torch.jit.script(model)
    assert torch.equal(made(X), torch.jit.script(expected)(X))
    assert not torch.equal(made(X), make()(X))
