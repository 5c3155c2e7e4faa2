"""Every connection of the library in a stack: its layers are the sites, however it keeps or compiles them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import levada
from levada import connections
from levada.connection import Connection
from levada.diagnose import check
from levada.probe import cotangent_rms

DEPTH, DIM = 5, 8
CONNECTIONS = sorted(
    (c for c in vars(connections).values() if isinstance(c, type) and issubclass(c, Connection)),
    key=lambda c: c.__name__,
)
RECOMPUTING = [levada.Momentum, levada.Reversible]


def net(connection, **options):
    torch.manual_seed(0)
    if connection is levada.Dense:
        options = {"growth": 4, **options}
    stack = levada.Stack(
        lambda dim: nn.Linear(dim, options.get("growth", dim)), connection, dim=DIM, depth=DEPTH, **options
    )
    model = nn.Sequential(nn.Linear(6, DIM), stack, nn.Linear(stack.dim_out, 3))
    return model.eval() if connection is levada.StochasticDepth else model  # a dropped layer is no site


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 6, generator=generator), torch.arange(32) % 3


def assert_checked(model):
    """The report covers every layer, and the model is as it was."""
    before, inputs = copy.deepcopy(model.state_dict()), batch()[0]
    attributes = [set(m.__dict__) | {getattr(m, "recompute", None)} for m in model.modules()]
    report = check(model, batch())
    assert report.verdict != "error", report.findings
    sites = [b["site"] for b in report.blocks if not b["site"].startswith("1.output")]  # what is learned after the last
    assert sites == ["0", *(f"1.layers.{i}" for i in range(DEPTH)), "2"]
    assert all(abs(b["cotangent_log10"]) < 10 for b in report.blocks)
    assert all(b["gradient_rms"] > 0 for b in report.blocks)
    assert attributes == [set(m.__dict__) | {getattr(m, "recompute", None)} for m in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model(inputs).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    return report


@pytest.mark.parametrize("connection", CONNECTIONS, ids=lambda c: c.__name__)
@pytest.mark.filterwarnings("ignore:ValueResidual. no branch:UserWarning")  # as none of these has values
def test_the_layers_of_a_stack_are_its_sites(connection):
    assert_checked(net(connection))


@pytest.mark.parametrize("connection", RECOMPUTING, ids=lambda c: c.__name__)
def test_a_stack_that_recomputes_measures_as_one_that_does_not(connection):
    recomputing, keeping = net(connection), net(connection, recompute=False)
    keeping.load_state_dict(recomputing.state_dict())
    reports = [check(model, batch()) for model in (recomputing, keeping)]
    assert reports[0].blocks == reports[1].blocks
    logs = [cotangent_rms(model, lambda m=model: m(batch()[0]))[1] for model in (recomputing, keeping)]
    assert torch.equal(*logs)
    assert logs[0].isfinite().all()


def test_the_gradient_at_a_momentum_layer_is_that_of_its_position():
    model = net(levada.Momentum)
    inputs, targets = batch()
    x = model[0](inputs)
    x.retain_grad()
    nn.functional.cross_entropy(model[2](model[1](x)), targets).backward()
    measured = check(model, (inputs, targets)).blocks[0]["gradient_rms"]
    assert measured == pytest.approx(x.grad.square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("connection", [levada.ReZero, levada.Momentum], ids=lambda c: c.__name__)
def test_a_stack_that_compiles_its_layers_is_measured_as_it_is_written(connection):
    with warnings.catch_warnings():
        # Of what the compiler imports, and of its own look at the gradient of a value in the graph.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*not a leaf Tensor", UserWarning)
        compiled = net(connection, compile={"backend": "eager"})
        report = assert_checked(compiled)
        written = net(connection)
        written.load_state_dict(compiled.state_dict())
        assert report.blocks == check(written, batch()).blocks
    assert any("without compiling" in note for note in report.notes)
