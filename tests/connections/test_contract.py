"""What every connection of the library must do, run over all that `levada.connections` lists.

A new connection needs nothing here, unless it has an option without a default (`OPTIONS`), a mode that deserves a case
of its own (`VARIANTS`), or cannot meet an item, with a reason (`EXCEPTIONS`, and its docstring).
"""

from __future__ import annotations

import copy
import inspect
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import levada.connections
from levada._errors import UsageError
from levada.connection import Connection
from levada.connections.streams import Streams
from levada.stack import Stack
from levada.stacking import as_layers

# Fewer iterations than usual: each is a dozen operations that the compiler has to go through.
OPTIONS = {
    "Dense": {"growth": 4},
    "LearnedAugmentedResidual": {"rank": 2},
    "ManifoldHyperConnection": {"iterations": 3},
    "SinglePassManifoldHyperConnection": {"iterations": 3},
    "SparseHyperConnection": {"streams": 6, "active": 3, "fixed": 1},
    "ValueResidual": {"period": 1},
}

VARIANTS = {
    "AttentionResidual": {
        "block": {"block_size": 2},
        "sum": {"scale": "sum"},
        "inkling": {"form": "inkling2"},
        "inkling-block": {"form": "inkling2", "block_size": 2},
    },
    "DepthWeightedAverage": {"dilated": {"dilation": 2, "period": 3}},
    "FractionalConnection": {"static": {"dynamic": False}},
    "HyperConnection": {"static": {"dynamic": False}, "mean": {"head": "mean", "norm": "rms"}},
    "IdentityHyperConnection": {"mean": {"head": "mean"}},
    "InputResidual": {"nanochat": {"start": "nanochat", "period": 2}},
    "LearnedAugmentedResidual": {"norm": {"norm": True}},
    "ManifoldHyperConnection": {
        "deepseek": {"form": "deepseek_v4"},
        "glm": {"form": "glm5_next"},
        "permutations": {"manifold": "permutations", "iterations": 20},
        "kronecker": {"manifold": "kronecker", "iterations": 20},
        "orthogonal": {"manifold": "orthogonal", "iterations": 20},
        "isometric": {"manifold": "isometric", "iterations": 20},
        "spectral": {"manifold": "spectral", "iterations": 20},
    },
    "Dense": {"concatenated": {"in_place": False}},
    "Highway": {"uncoupled": {"coupled": False}},
    "LayerScale": {"0.1": {"init": 0.1}},
    "Momentum": {"stored": {"recompute": False}},
    "PostNorm": {"deepnorm": {"alpha": "deepnorm"}},
    "Reversible": {"stored": {"recompute": False}},
    "SinglePassManifoldHyperConnection": {"released": {"form": "deepseek_v41"}},
    "SparseHyperConnection": {"routed": {"fixed": 0, "head": "mean"}},
    "StochasticDepth": {"sample": {"mode": "sample"}},
    "ValueResidual": {"gated": {"form": "gated"}, "fixed": {"form": "fixed"}},
}

ONE_BACKWARD = "a recomputed chain goes backward once and gradcheck does so often; the stored variant is checked here"
EXCEPTIONS = {
    ("Momentum", "bfloat16 stream"): "refuses to recover states from bfloat16; under autocast the stream is float32",
    ("Momentum", "gradcheck"): ONE_BACKWARD,
    ("Reversible", "gradcheck"): ONE_BACKWARD,
    ("StochasticDepth", "compile in training"): "draws in another order: a compiled graph computes what it drops",
    ("StochasticDepth-sample", "compile in training"): "a compiled graph draws from another stream of random numbers",
    ("StochasticDepth-sample", "sharding in training"): "processes draw for their own samples",
}

# Layers that cannot be stacked: their parameters differ, or are exchanged for others when a branch is run again.
APART = {
    "AttentionResidual",
    "Dense",
    "DepthWeightedAverage",
    "InputResidual-nanochat",
    "Momentum",
    "MultiwayDynamicDense",
    "Reversible",
    "ValueResidual",
    "ValueResidual-gated",
}

DIM, DEPTH = 8, 3


class Values(nn.Sequential):
    """A branch with values, and no tokens to attend to."""

    mixes_values = True

    def forward(self, x: Tensor, mix_values=None) -> Tensor:
        values = self[0](x)
        return self[1](values if mix_values is None else mix_values(values))


BRANCHES = {"ValueResidual": Values}  # where any other would leave what is learned without a gradient


def listed() -> dict[str, type[Connection]]:
    named = vars(levada.connections).items()
    classes = {name: c for name, c in named if isinstance(c, type) and issubclass(c, Connection)}
    return {name: c for name, c in classes.items() if not inspect.isabstract(c)}


def cases() -> dict[str, tuple[type[Connection], dict]]:
    found = {}
    for name, connection in listed().items():
        options = OPTIONS.get(name, {})
        found[name] = connection, options
        for variant, extra in VARIANTS.get(name, {}).items():
            found[f"{name}-{variant}"] = connection, {**options, **extra}
    return found


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES)


def build(case: str, *, dim: int = DIM, depth: int = DEPTH, dtype: torch.dtype = torch.float32, seed: int = 0) -> Stack:
    """Make a stack whose connections are off their starting point, where zeros hide half of the gradients."""
    connection, options = CASES[case]
    torch.manual_seed(seed)

    def branch(dim_in: int) -> nn.Module:
        kind = BRANCHES.get(connection.__name__, nn.Sequential)
        return kind(nn.Linear(dim_in, options.get("growth", dim_in)), nn.Tanh())

    stack = Stack(branch, connection, dim=dim, depth=depth, **options)
    with torch.no_grad():
        for module in [*(layer.connection for layer in stack.layers), stack.output]:
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return stack.to(dtype)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def run(stack: Stack, x: Tensor) -> Tensor:
    torch.manual_seed(3)  # for connections that draw
    return stack(x)


def gradients(stack: Stack, x: Tensor) -> dict[str, Tensor]:
    stack.zero_grad()
    x = x.detach().requires_grad_()
    run(stack, x).square().mean().backward()
    return {"input": x.grad} | {name: p.grad.clone() for name, p in stack.named_parameters() if p.grad is not None}


def skip_exception(case: str, item: str) -> None:
    if (case, item) in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[case, item])


def test_the_tables_name_what_exists():
    assert len(CASES) > len(listed()) > 0
    assert set(OPTIONS) | set(VARIANTS) | set(BRANCHES) <= set(listed())
    assert {case for case, _ in EXCEPTIONS} <= set(CASES)


@pytest.mark.parametrize("name", listed())
def test_classes_are_final_and_documented(name):
    connection = listed()[name]
    assert getattr(connection, "__final__", False), "a class is abstract or final"
    for section in ("Args:", "Shape:", "Cost:", "Example:"):
        assert section in connection.__doc__
    parameters = list(inspect.signature(connection).parameters.values())
    assert [p.name for p in parameters[:1]] == ["dim"]
    assert {p.kind for p in parameters[1:]} == {inspect.Parameter.KEYWORD_ONLY}


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("leading", [(4,), (2, 3)], ids=str)
def test_shape_and_dtype(case, dtype, leading):
    if dtype == torch.bfloat16:
        skip_exception(case, "bfloat16 stream")
    stack = build(case, dtype=dtype)
    y = run(stack, batch(*leading, DIM, dtype=dtype))
    assert y.shape == (*leading, stack.dim_out)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()


@every_case
def test_every_parameter_gets_a_gradient(case):
    stack, x = build(case), batch(2, 3, DIM).requires_grad_()
    for seed in range(8):  # so that what is dropped at random is there at least once
        torch.manual_seed(seed)
        stack(x).square().sum().backward()
    for name, parameter in [("input", x), *stack.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("case", [case for case, (connection, _) in CASES.items() if issubclass(connection, Streams)])
def test_each_row_of_a_shared_parameter_gets_a_gradient(case):
    # What reads, mixes and writes has rows of one tensor. In a layer between others: before the first one all streams
    # are equal, and after the last a mean undoes what mixes them.
    stack = build(case, dtype=torch.float64)
    stack(batch(64, DIM, dtype=torch.float64)).square().sum().backward()
    for name, parameter in stack[1].connection.named_parameters():
        rows = parameter.grad.flatten(1).norm(dim=1) if parameter.ndim > 1 else parameter.grad.abs()
        assert (rows > 1e-9 * rows.max()).all(), f"{name}: {(rows / rows.max()).tolist()}"


@every_case
def test_rows_of_a_batch_are_independent(case):
    stack, x = build(case, dtype=torch.float64), batch(4, 3, DIM, dtype=torch.float64)
    other = x.clone()
    other[1:] = 5 * torch.randn_like(other[1:])
    x.requires_grad_()
    y = run(stack, x)
    torch.testing.assert_close(y[0], run(stack, other)[0], rtol=1e-12, atol=1e-12)
    y[0].sum().backward()
    assert x.grad[0].abs().sum() > 0
    assert x.grad[1:].abs().sum() == 0


@every_case
def test_state_dict_round_trip(case):
    stack, other, x = build(case), build(case, seed=1), batch(4, DIM)
    assert not torch.equal(run(stack, x), run(other, x))
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(run(stack, x), run(other, x))
    assert torch.equal(run(stack, x), run(copy.deepcopy(stack), x))
    assert all(parameter.ndim > 0 for parameter in stack.parameters()), "a learned scalar has shape (1,)"


@every_case
def test_no_grad_and_inference_mode_give_the_same_numbers(case):
    stack, x = build(case), batch(2, 3, DIM)
    y = run(stack, x)
    assert y.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(run(stack, x), y)


@every_case
def test_gradcheck(case):
    skip_exception(case, "gradcheck")
    stack, x = build(case, dim=4, depth=2, dtype=torch.float64), batch(3, 4, dtype=torch.float64).requires_grad_()
    names, values = zip(*stack.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        torch.manual_seed(3)
        return functional_call(stack, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


@every_case
def test_compiled_equals_eager(case):
    stack = build(case).train((case, "compile in training") not in EXCEPTIONS)
    torch.compiler.reset()
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    x = batch(2, 3, DIM).requires_grad_()  # as for the gradients, so that it is compiled once
    torch.testing.assert_close(run(compiled, x), run(stack, x), rtol=1e-5, atol=1e-6)
    expected, found = gradients(stack, x), gradients(compiled, x)
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@every_case
def test_checkpointing_gives_the_same_gradients(case):
    stack, x = build(case), batch(2, 3, DIM)
    expected = gradients(stack, x)
    stack.segments = 2
    torch.testing.assert_close(gradients(stack, x), expected)


@every_case
@pytest.mark.filterwarnings("ignore:Stack. stacked layers run one by one")  # by kernels that no dispatcher sees
def test_stacked_equals_plain(case):
    plain, x = build(case), batch(2, 3, DIM)
    stored = case.endswith("-stored")
    name = case.partition("-")[0]
    if case in APART or (name in APART - {"ValueResidual"} and not stored):
        with pytest.raises(UsageError, match=r"alike|parameters of its own"):
            gradients(copy.deepcopy(plain).arrange(stacked=True), x)
        return
    stacked = copy.deepcopy(plain).arrange(stacked=True)
    torch.testing.assert_close(run(stacked, x), run(plain, x), rtol=1e-5, atol=1e-6)
    expected, found = gradients(plain, x), gradients(stacked, x)
    with as_layers(stacked):
        found |= {name: p.grad for name, p in stacked.named_parameters() if name in expected}
    found = {name: gradient for name, gradient in found.items() if name in expected}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@every_case
def test_export(case):
    stack, x = build(case).eval(), batch(2, 3, DIM)
    exported = torch.export.export(stack, (x,)).module()
    torch.testing.assert_close(exported(x), stack(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "case", [case for case, (connection, _) in CASES.items() if hasattr(connection, "coefficients")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_coefficients_are_made_in_float32_whatever_autocast_says(case, dtype):
    stack = build(case)
    state = stack[0](stack[0].connection.begin(batch(2, 3, DIM)))  # streams that differ
    state = state if isinstance(state, Tensor) else state[0]
    expected = stack[1].connection.coefficients(state.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = stack[1].connection.coefficients(state.to(dtype))
    types = {x.dtype for x in found if x is not None and x.is_floating_point()}
    assert types == {torch.float32}
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0)


@every_case
def test_bfloat16_autocast_gives_nearly_the_same(case):
    stack, x = build(case), batch(2, 3, DIM)
    expected = gradients(stack, x)
    with torch.autocast("cpu", torch.bfloat16):
        y, found = run(stack, x), gradients(stack, x)
    torch.testing.assert_close(y.float(), run(stack, x), rtol=0.05, atol=0.05)
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        # The branches' own rounding leaves little of a gradient in which most cancels.
        error = (gradient - expected[name]).norm() / largest
        assert error < 0.05, f"{name}: {error:.3f}"


ZERO_BRANCH = ["LayerScale", "Momentum", "ReZero", "Residual", "Reversible", "SkipInit", "StochasticDepth"]
ANY_BRANCH = {"ReZero": {}, "SkipInit": {}, "LayerScale": {"init": 0.0}, "Highway": {"bias": -200.0}}


@pytest.mark.parametrize("name", ZERO_BRANCH)
def test_zero_branches_make_the_identity(name):
    def branch(dim_in: int) -> nn.Module:
        linear = nn.Linear(dim_in, dim_in)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear

    stack, x = Stack(branch, listed()[name], dim=DIM, depth=4), batch(2, 3, DIM)
    assert torch.equal(stack(x), x)


@pytest.mark.parametrize("name", ANY_BRANCH)
def test_claims_of_identity_at_the_start(name):
    stack = Stack(lambda dim: nn.Linear(dim, dim), listed()[name], dim=DIM, depth=50, **ANY_BRANCH[name])
    x = batch(4, DIM).requires_grad_()
    y = stack(x)
    assert torch.equal(y, x)
    cotangent = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, cotangent)[0], cotangent)


@pytest.fixture(scope="module")
def sharded(two_processes) -> dict[str, dict[str, Tensor]]:
    """Gradients of every case, from two processes that hold half of each layer and see half of the batch."""
    return two_processes(__file__)


@every_case
def test_sharded_gradients_equal_a_single_process(case, sharded):
    stack = build(case, dtype=torch.float64).train((case, "sharding in training") not in EXCEPTIONS)
    expected = gradients(stack, batch(4, 3, DIM, dtype=torch.float64))
    del expected["input"]
    torch.testing.assert_close(sharded[case], expected, rtol=1e-9, atol=1e-12)


def shard(rank: int, folder: Path) -> None:
    """Write the gradients of all cases; one of the two processes of `sharded`."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    found = {}
    for case in CASES:
        stack = build(case, dtype=torch.float64).train((case, "sharding in training") not in EXCEPTIONS)
        for layer in stack.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(stack, mesh=mesh)
        half = batch(4, 3, DIM, dtype=torch.float64).chunk(2)[rank]
        run(stack, half).square().mean().backward()
        found[case] = {n: p.grad.full_tensor() for n, p in stack.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts
    dist.destroy_process_group()


if __name__ == "__main__":
    shard(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
