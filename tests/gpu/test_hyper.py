"""Reading hyper-connections' streams on a GPU: values and gradients against the formula in float64."""

import pytest
import torch
from tests.ops.differences import relative_errors
from tests.ops.test_hyper import EPSILON, arguments, by_formula, fused

from levada.ops.hyper import autograd as registered

# What is compiled in full precision is meant to be.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
]


def on_gpu(tensors, dtype):
    """Return the streams in a type, and the parameters in float32."""
    state, *own = (x.detach() for x in tensors)
    kinds = (dtype, *[torch.float32] * len(own))
    return [x.to("cuda", kind).requires_grad_() for x, kind in zip((state, *own), kinds, strict=True)]


def doubled(tensors):
    return [x.detach().double().requires_grad_() for x in tensors]


def run(function, tensors):
    """Return results but the streams, and gradients by what arrives at all, which is rounded to the streams' type."""
    found = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    by = [torch.randn(y.shape, generator=generator).bfloat16().to(y) for y in found]
    gradients = torch.autograd.grad(found, tensors, by)
    return [*(y.detach() for y in found[:-1]), *gradients]


def close(got, expected, dtype):
    """Compare: what is in the streams' type is rounded once; sums in float32 lose the factors' last bits at most."""
    for place, (found, error) in enumerate(zip(got, relative_errors(got, expected), strict=True)):
        assert error <= (5e-5 if found.dtype == torch.float32 else 2 * torch.finfo(dtype).eps), (place, error)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(1, 2, 1), (3, 3, 37), (300, 4, 2560), (33, 16, 96)], ids=str)
def test_values_and_gradients_are_the_formulas(sizes, dtype, centred):
    tensors = on_gpu(arguments(*sizes, centred, torch.float32), dtype)
    close(run(fused, tensors), run(by_formula, doubled(tensors)), dtype)


def test_results_repeat_bit_by_bit():
    tensors = on_gpu(arguments(3000, 4, 1024, dtype=torch.float32), torch.bfloat16)
    first = run(fused, tensors)
    for _ in range(3):
        assert all(map(torch.equal, run(fused, tensors), first))


def test_it_compiles_whole():
    tensors = on_gpu(arguments(30, 4, 64, dtype=torch.float32), torch.float32)
    close(run(torch.compile(fused, fullgraph=True), tensors), run(by_formula, doubled(tensors)), torch.float32)


def test_it_may_be_captured_in_a_graph():
    tensors = [x.detach() for x in on_gpu(arguments(200, 4, 256, dtype=torch.float32), torch.bfloat16)]
    expected = registered.READ.operation(*tensors, EPSILON)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = registered.READ.operation(*tensors, EPSILON)
    graph.replay()
    assert all(map(torch.equal, got, expected))
