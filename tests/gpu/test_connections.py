"""Every connection computes on a GPU what it computes on a CPU, compiled too, and takes half precision."""

import pytest
import torch
from tests.connections.test_contract import CASES, batch, build, gradients, run

# What is compiled in full precision is meant to be, and the compiler looks at `.grad` of what has none.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"),
]
# What they drop is drawn by the device's own generator.
DRAWN = ("StochasticDepth", "StochasticDepth-sample")
every_case = pytest.mark.parametrize("case", CASES)


def both(case, dtype=torch.float32):
    """Return the same stack, in evaluation mode where it draws, on either device."""
    here, there = build(case).to(dtype), build(case).to("cuda", dtype)
    for stack in (here, there):
        stack.train(case not in DRAWN)
    return here, there


@every_case
def test_values_and_gradients_are_those_of_a_cpu(case):
    here, there = both(case, torch.float64)
    x = batch(5, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(run(there, x.cuda()).cpu(), run(here, x), rtol=1e-9, atol=1e-9)
    got, expected = gradients(there, x.cuda()), gradients(here, x)
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            got[name].cpu(), expected[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_case
def test_under_bfloat16_autocast_nothing_strays(case):
    here, there = both(case)
    x = batch(64, 8)
    with torch.autocast("cuda", torch.bfloat16):
        got = run(there, x.cuda())
    expected = run(here, x)
    assert torch.isfinite(got).all()
    assert (got.float().cpu() - expected).norm() <= 0.1 * expected.norm()


@pytest.mark.parametrize(
    "case", ["Residual", "Highway", "Dense", "HyperConnection", "ManifoldHyperConnection", "AttentionResidual"]
)
def test_compiled_by_inductor(case):
    _, stack = both(case)
    x = batch(16, 8).cuda()
    expected = run(stack, x), gradients(stack, x)
    torch.compiler.reset()
    compiled = torch.compile(stack, fullgraph=True)
    torch.testing.assert_close(run(compiled, x), expected[0], rtol=1e-4, atol=1e-4)
    stack.zero_grad()
    run(compiled, x).square().mean().backward()
    for name, parameter in stack.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[1][name], rtol=2e-3, atol=1e-4)
