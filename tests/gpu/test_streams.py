"""Writing to streams on a GPU against the reference in float64."""

import pytest
import torch
from tests.ops.test_streams import arguments

from levada.ops import write_streams
from levada.ops.streams import reference

# What is compiled in full precision is meant to be, and the compiler looks at `.grad` of what has none.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"),
]


def derivatives(function, tensors, cotangent):
    leaves = [x.detach().requires_grad_() for x in tensors]
    new = function(*leaves)
    return [new.detach(), *torch.autograd.grad(new, leaves, cotangent)]


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "sizes", [(1, 2, 1), (3, 3, 37), (65, 4, 2560), (7, 7, 20), (33, 16, 1000), (0, 4, 3)], ids=str
)
def test_values_and_gradients_are_the_references(sizes, dtype, mixes):
    tensors = [x.detach() for x in arguments(*sizes, mixes=mixes, dtype=torch.float64)]
    narrow = [x.to("cuda", dtype if i < 2 or dtype == torch.float64 else torch.float32) for i, x in enumerate(tensors)]
    cotangent = torch.randn(sizes, dtype=torch.float64).to("cuda", dtype)
    got = derivatives(write_streams, narrow, cotangent)
    expected = derivatives(
        lambda *x: reference.write(*x, *([] if mixes else [None])), [x.double() for x in narrow], cotangent.double()
    )
    assert [x.dtype for x in got] == [dtype, *(x.dtype for x in narrow)]
    for found, truth in zip(got, expected, strict=True):
        if truth.numel():
            assert (found.double() - truth).abs().max() <= 8 * torch.finfo(found.dtype).eps * truth.abs().max()


def test_results_repeat_bit_by_bit():
    tensors = [x.detach().to("cuda", torch.float32) for x in arguments(300, 4, 1000, dtype=torch.float32)]
    cotangent = torch.randn(300, 4, 1000, device="cuda")
    first = derivatives(write_streams, tensors, cotangent)
    for _ in range(5):
        assert all(map(torch.equal, derivatives(write_streams, tensors, cotangent), first))


def test_compiled_whole():
    tensors = [x.detach().to("cuda", torch.float32) for x in arguments(30, 4, 100, dtype=torch.float32)]
    cotangent = torch.randn(30, 4, 100, device="cuda")
    compiled = torch.compile(write_streams, fullgraph=True)
    torch.testing.assert_close(
        derivatives(compiled, tensors, cotangent), derivatives(write_streams, tensors, cotangent), rtol=1e-5, atol=1e-5
    )
